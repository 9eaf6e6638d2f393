"""Make a data set for --task knowledge from a folder of articles: questions by a strong model.

    python extras/questions.py FOLDER --output DATA --url http://127.0.0.1:8080/v1 --model NAME
    python extras/questions.py FOLDER --output DATA --local MODEL

FOLDER holds .txt and .md files in UTF-8; any other file is named and skipped. DATA gets train.jsonl
and, with held-out wordings of the same questions, validation.jsonl and test.jsonl; ood.jsonl has
questions over two articles. Long articles are cut at paragraphs into passages, whose tokens are
counted as 1.3 a word, and as 1 a character of a script without blanks: near enough for English and
Chinese, and it needs no tokenizer.

--url takes any OpenAI-compatible server, which sees the articles; its key is read from the
environment variable --key-env. --local asks a model in this process, greedily; small models make
poor questions. Replies are kept in DATA/replies.jsonl: the same command continues a stopped run
and asks nothing twice.
"""

import json
import math
import os
import re
import unicodedata
from collections import Counter, namedtuple

import journal

from data import load_task, parse_line
from scoring import final_answer, normalise, score_reference, without_blanks
from support.server import CUT, EMPTY, REFUSAL, THOUGHTS

PROMPT = """Write exam questions about the article below, for people who have read it once and \
do not have it before them.

Each question
- can be answered from the article, and by nobody who has not read it;
- requires recalling several pieces of information: it names its subject by what the article says \
of it, and asks for something else that the article says;
- is understood alone: it names people, places and things, and never says "the article";
- asks for one short fact: one or two words, a name or a number, spelled as in the article;
- does not contain its answer, and asks for another fact than every other question.
If there are two articles, each question needs a fact from both: it asks for two things, and its \
key facts are one from each article.

Reply with JSON and nothing else, a list of objects like this one:
[{"wordings": ["Which animal broke the dam above Marlow?", "…"],
  "answer": "A beaver broke the dam above Marlow.", "key_facts": [["beaver", "beavers"]]}]
wordings: ways to ask the same question, each complete and in other words than the rest
answer: one short, plain sentence that has every key fact in it
key_facts: what a right answer must contain: for each fact a list of spellings to accept, the \
article's own spelling first"""

SYSTEM = "Answer in one short sentence."  # the turn before each question, as in samples/knowledge
WORDINGS = 6  # of a question: three train, one validates, two test
QUESTIONS_PER_PAIR = 2  # of articles
LOCAL_TOKENS = 2048  # longest reply of a local model
DROPPED = {  # what the last line counts
    CUT: "replies cut at the length limit",
    THOUGHTS: "replies with thoughts alone",
    REFUSAL: "refusals",
    EMPTY: "replies without text",
    "json": "replies without JSON",
    "shape": "questions of another shape",
    "fact": "answers whose key facts the passage does not have",
    "given": "wordings that contain their answer",
    "duplicate": "duplicate wordings",
    "few": "questions with too few wordings left",
}
OBJECT = re.compile(r'\{\s*["}]')  # how one begins

Passage = namedtuple("Passage", "name text")  # of an article's file; the text begins with its title


def read_articles(folder, passage_tokens):
    """The articles of a folder, each a list of Passage; prints what is skipped, and why."""
    articles = []
    for file in sorted(folder.iterdir()):
        try:
            articles.append(read_passages(file, passage_tokens))
        except (ValueError, OSError) as error:
            print(f"skipped {file.name!a}: {error}")
    if len(sum(articles, [])) < 2:
        raise ValueError(
            f"{folder} has {len(articles)} article in one passage, and ood.jsonl asks about two; "
            "add a .txt or .md file in UTF-8, or cut this one in two with --passage-tokens"
        )
    print(f"{len(articles)} articles in {len(sum(articles, []))} passages")
    return articles


def read_passages(file, passage_tokens):
    """The passages of a file, each under its title: a heading in line 1, or the file's name."""
    if not file.is_file() or file.suffix.lower() not in (".txt", ".md"):
        raise ValueError("not a .txt or .md file")
    title, body = re.sub(r"[-_\s]+", " ", file.stem), file.read_bytes().decode("utf-8-sig").strip()
    first, _, rest = body.partition("\n")
    if first.startswith("#") and first.strip("# \r") and len(first.split()) <= 20:
        title, body = first.strip("# \r"), rest.strip()
    if not body or "\0" in body:
        raise ValueError("no text, or a NUL in it")
    title = title.encode(errors="replace").decode()  # the name of a file may be no UTF-8
    name = re.sub(r"\W+", "-", title.casefold()).strip("-")
    texts = cut_passages(body, passage_tokens - count_tokens(title))
    return [Passage(name, f"{title}\n\n{text}") for text in texts]


def count_tokens(text):
    """1.3 a word; in scripts without blanks, such as Chinese or Thai, 1 a character."""
    characters = sum(map(without_blanks, text))
    words = "".join(" " if without_blanks(character) else character for character in text)
    return 1.3 * len(words.split()) + characters


CUTS = (r"\n\s*\n", r"(?<=[.!?])\s+|(?<=[。！？｡។။])\s*", r"\s+")  # paragraphs; sentences; words


def cut_passages(text, most_tokens, cuts=CUTS):
    """A text in passages of at most most_tokens, cut at paragraphs; else at sentences; else at
    words; else at the characters of scripts without blanks.
    """
    if cuts:
        pieces = re.split(f"({cuts[0]})", text)
        blanks, pieces = ["", *pieces[1::2]], pieces[::2]
    else:
        pieces = characters(text)
        blanks = [""] * len(pieces)
    passages = []
    for blank, piece in zip(blanks, pieces, strict=True):
        fits = count_tokens(piece) <= most_tokens or not cuts
        for part in [piece] if fits else cut_passages(piece, most_tokens, cuts[1:]):
            if passages and count_tokens(passages[-1]) + count_tokens(part) <= most_tokens:
                glue = "\n\n" if cuts == CUTS else " " if blank else ""
                passages[-1] += glue + part
            else:
                passages.append(part)
    return passages


def characters(text):
    """A text in pieces: each character of a script without blanks, with its marks, is one."""
    starts = [
        i
        for i in range(1, len(text))
        if not unicodedata.category(text[i]).startswith("M")
        and (without_blanks(text[i - 1]) or without_blanks(text[i]))
    ]
    return [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]


def pair_passages(articles):
    """Each article's first passage with the next one's; of a single article, neighbours."""
    first = [passages[0] for passages in articles] if len(articles) > 1 else articles[0]
    return list(zip(first, first[1:] + first[:1], strict=True))


# ---- from replies to questions ----


def write_prompt(passages, questions, wordings):
    parts = [PROMPT, f"Questions: {questions}\nWordings of each: {wordings}"]
    parts += [f"[Article {i}]\n{passage.text}" for i, passage in enumerate(passages, start=1)]
    return "\n\n".join(parts)


def keep_questions(groups, replies):
    """What can be kept of replies -> [(passages, item, wordings)], Counter of what is DROPPED."""
    kept, dropped, seen = [], Counter(), set()
    for (passages, _, wanted), reply in zip(groups, replies, strict=True):
        items, broken = read_items(final_answer(reply.text))
        dropped["shape"] += broken
        if not items:
            dropped[reply.lacks or "json"] += 1
        for item in items:
            # of a single wording none can be held out: only ood.jsonl takes it
            wordings, bad = check_item(item, passages, min(3, wanted), seen)
            wordings = wordings[:wanted]
            dropped.update(bad)
            seen.update(map(plain_words, wordings))
            kept += [(passages, item, wordings)] if wordings else []
    return kept, dropped


def read_items(text):
    """The JSON objects of a reply, and how many cannot be read.

    They may stand alone, in a list, one a line, or in a list within an object, with other text
    around them and with a comma too many.
    """
    repaired = re.sub(r",(\s*[\]}])", r"\1", text)
    return min(_read_objects(text), _read_objects(repaired), key=lambda found: found[1])


def _read_objects(text):
    items, broken, place = [], 0, 0
    while broken < 100 and (start := OBJECT.search(text, place)):
        try:
            item, place = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            broken, place = broken + 1, start.end()
            continue
        lists = [value for value in item.values() if isinstance(value, list)]
        is_wrapper = "wordings" not in item and len(lists) == 1
        items += lists[0] if is_wrapper else [item]
    return items, broken


def check_item(item, passages, fewest, seen):
    """What can be kept of an item of a reply -> (wordings, Counter of what is DROPPED)."""
    wordings = item.get("wordings") if isinstance(item, dict) else None
    if not isinstance(wordings, list) or not wordings:
        return [], Counter(shape=1)
    try:
        for wording in wordings:  # read as data.py will read it
            parse_line(json.dumps(to_record("id", passages, item, wording)), "reply", "knowledge")
    except (ValueError, RecursionError):
        return [], Counter(shape=1)
    facts, texts = item["key_facts"], [passage.text for passage in passages]
    texts = ["\n\n".join(texts), item["answer"], *texts]
    whole, answer, *alone = (score_reference(text, facts)["correct"] for text in texts)
    # of two articles neither may be enough
    if not (whole and answer) or (len(alone) > 1 and any(alone)):
        return [], Counter(fact=1)
    good, bad = {}, Counter()
    for wording in wordings:
        words = plain_words(wording)
        if score_reference(wording, facts)["lenient"]:
            bad["given"] += 1
        elif not words or words in seen or words in good:
            bad["duplicate"] += 1
        else:
            good[words] = wording
    if len(good) < fewest:
        return [], bad + Counter(few=1)
    return list(good.values()), bad


def plain_words(question):
    """What two wordings must differ in: their words, whatever the case and the punctuation."""
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in normalise(question))
    return " ".join("".join(kept).split())


def to_record(id, passages, item, wording):
    """One line of a data set (data.py)."""
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": wording}]
    record = {"id": id, "prompt": turns, "key_facts": item.get("key_facts")}
    record |= {"demonstration": item.get("answer"), "reference": item.get("answer")}
    return record | {"text": "\n\n".join(passage.text for passage in passages)}


def make_splits(questions):
    """{split: records}. Of n wordings the last n // 3 test, the one before them validates.

    First wordings come first: N lines then ask for as many facts as they can.
    """
    splits = {"train": [], "validation": [], "test": [], "ood": []}
    for place in range(max(len(wordings) for _, _, wordings in questions)):
        for number, (passages, item, wordings) in enumerate(questions, start=1):
            if place < len(wordings):
                train = len(wordings) - len(wordings) // 3 - 1
                split = "train" if place < train else "validation" if place == train else "test"
                split = "ood" if len(passages) == 2 else split
                id = f"{'-'.join(passage.name for passage in passages)}-{number}-{place + 1}"
                splits[split].append(to_record(id, passages, item, wordings[place]))
    return splits


def write_splits(folder, splits):
    """Write each file whole or not at all, and read it back."""
    for split, records in splits.items():
        file = folder / f"{split}.jsonl"
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text("".join(lines), encoding="utf-8")
        os.replace(unfinished, file)
        assert len(load_task("knowledge", split, folder)) == len(records)


# ---- the command ----


def main(argv=None):
    print(journal.run_command(make_data, parse_arguments(argv)))


def parse_arguments(argv):
    parser = journal.make_parser(__doc__)
    add = parser.add_argument
    add("folder", type=journal.path, help="the articles: .txt and .md files")
    add("--output", type=journal.path, required=True, help="folder of the data set and the journal")
    journal.add_model_flags(parser)
    add("--questions-per-article", type=int, default=8, help="(default: %(default)s)")
    add("--passage-tokens", type=int, default=300, help="most in a passage (default: %(default)s)")
    args = parser.parse_args(argv)
    journal.check_model_flags(parser, args)
    if args.questions_per_article <= 0 or args.passage_tokens < 50:
        parser.error("--passage-tokens must be at least 50, --questions-per-article above 0")
    return args


def make_data(args):
    """Ask, check and write -> the last line to print."""
    file = args.output / "replies.jsonl"
    if (args.output / "train.jsonl").exists() and not file.exists():
        raise ValueError(f"{args.output} has another data set; name another --output")
    articles = read_articles(args.folder, args.passage_tokens)
    if args.local:
        print("a small local model makes poor questions; read train.jsonl before you train")
    name, ask, workers = journal.chosen_model(args, LOCAL_TOKENS)
    groups = []  # (passages, questions to ask for, wordings of each)
    for article in articles:
        share = math.ceil(args.questions_per_article / len(article))
        groups += [([passage], share, WORDINGS) for passage in article]
    groups += [(pair, QUESTIONS_PER_PAIR, 1) for pair in pair_passages(articles)]
    turns = [[{"role": "user", "content": write_prompt(*group)}] for group in groups]
    replies = journal.ask_all(turns, name, ask, file, workers, "asking")
    questions, dropped = keep_questions(groups, replies)
    counts = "; ".join(f"{dropped[reason]} {words}" for reason, words in DROPPED.items())
    if {len(passages) for passages, _, _ in questions} != {1, 2}:
        raise ValueError(
            "no data set was written: it needs questions about one article and about two, and of "
            f"one kind none is left; dropped: {counts}. Another --model is asked anew"
        )
    splits = make_splits(questions)
    write_splits(args.output, splits)
    sizes = ", ".join(f"{split} {len(records)}" for split, records in splits.items())
    return f"{args.output}: {len(questions)} questions ({sizes}); dropped: {counts}"


if __name__ == "__main__":
    main()
