"""Writes samples/probe/test.jsonl: easy general questions and instructions whose answers a program
can check.

    python samples/make/probe.py

They measure what a model has forgotten, without lm-evaluation-harness. Facts and sums have one key
fact, written "variant | variant"; instructions have a pattern, a regular expression for the form
asked for. They are meant to be easy: a small chat model should get a good part right, so that a
loss shows.
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "probe"
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "the United Kingdom": "London",
    "Russia": "Moscow",
    "China": "Beijing",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Canada": "Ottawa",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small | little",
    "up": "down",
    "fast": "slow",
    "open": "closed | close | shut",
    "happy": "sad | unhappy",
    "wet": "dry",
    "young": "old",
    "full": "empty",
    "left": "right",
    "day": "night",
}
COLOURS = {
    "grass": "green",
    "snow": "white",
    "a ripe banana": "yellow",
    "coal": "black",
    "a ripe tomato": "red",
    "a carrot": "orange",
    "the yolk of an egg": "yellow | orange",
}
ANIMALS = {
    "What is a young dog called?": "puppy | pup",
    "What is a young cat called?": "kitten",
    "What is a young cow called?": "calf",
    "Which animal barks?": "dog | dogs",
    "Which animal says moo?": "cow | cows",
    "Which animal gives us wool?": "sheep",
    "Which animal has a trunk and large ears?": "elephant | elephants",
    "Which animal has a very long neck?": "giraffe | giraffes",
    "Which insects make honey?": "bees | bee | honeybees",
    "Which animal is called the king of the jungle?": "lion | lions",
    "Which animals spin webs?": "spiders | spider",
    "Which striped animal looks like a horse?": "zebra | zebras",
}
FACTS = {
    "What is the largest planet of the solar system?": "Jupiter",
    "Which planet is called the red planet?": "Mars",
    "On which planet do we live?": "Earth",
    "What is the largest ocean?": "Pacific",
    "What is the highest mountain in the world?": "Everest",
    "Who wrote the play Hamlet?": "Shakespeare",
    "Who painted the Mona Lisa?": "Leonardo | da Vinci",
    "Who was the first president of the United States?": "Washington",
    "Who was the first person on the Moon?": "Armstrong",
    "Who developed the theory of relativity?": "Einstein",
    "What language do most people in Brazil speak?": "Portuguese",
    "What is the currency of Japan?": "yen",
    "What is the chemical formula of water?": "H2O | H₂O",
    "What is frozen water called?": "ice",
    "Which day comes after Monday?": "Tuesday",
    "Which day comes before Sunday?": "Saturday",
    "Which month comes after March?": "April",
    "What is the first month of the year?": "January",
    "Which season comes after winter?": "spring",
    "On which continent is Egypt?": "Africa",
    "In which city is the Eiffel Tower?": "Paris",
    "In which country is the Great Wall?": "China",
    "Which star gives us light by day?": "sun",
    "From which fruit is wine made?": "grapes | grape",
}
PLUS = [(2, 3), (3, 4), (1, 5), (5, 5), (6, 2), (4, 5), (7, 3), (8, 4), (9, 9)]
MINUS = [(5, 2), (9, 3), (7, 6), (8, 3), (9, 5), (6, 2)]
TIMES = [(2, 3), (3, 3), (2, 5), (4, 2), (5, 5), (6, 3), (4, 4), (7, 2)]
COUNTING = {
    "How many days are in a week?": 7,
    "How many months are in a year?": 12,
    "How many hours are in a day?": 24,
    "How many minutes are in an hour?": 60,
    "How many legs does a spider have?": 8,
    "How many legs does a dog have?": 4,
    "How many wheels does a bicycle have?": 2,
    "How many sides does a triangle have?": 3,
    "How many letters are in the English alphabet?": 26,
    "How many fingers are on one hand?": 5,
    "Which number comes after 9?": 10,
    "Which number comes before 7?": 6,
    'How many letters are in the word "cat"?': 3,
    'How many letters are in the word "apple"?': 5,
}

WORDS = {
    "the sea": 3,
    "the sun": 3,
    "dogs": 2,
    "winter": 4,
    "music": 3,
    "your favourite food": 2,
    "a garden": 5,
    "rain": 4,
}
ITEMS = {
    "fruits": 4,
    "colours": 3,
    "farm animals": 4,
    "days of the week": 3,
    "countries in Europe": 5,
    "vegetables": 3,
    "musical instruments": 4,
    "months of the year": 6,
    "kinds of weather": 3,
    "things in a kitchen": 5,
}
CAPITALS_ONLY = [
    "What do people drink in the morning?",
    "What is your name?",
    "Name a large city.",
    "What do birds do?",
    "Say hello to a friend.",
    "What grows on trees?",
]
LOWER_CASE_ONLY = [
    "Name a country in Asia.",
    "What do cats eat?",
    "Say thank you to a teacher.",
    "Where do fish live?",
    "Name a day of the week.",
    "What is a chair for?",
]
BEGIN = {
    "Because": "Why do people sleep?",
    "Yes": "Can birds fly?",
    "No": "Can stones swim?",
    "First": "How do I make tea?",
    "I think": "Is football a good sport?",
    "Dear Anna": "Write a letter to a friend.",
    "Once upon a time": "Tell a story.",
}
END = {
    "sleep": "cats",
    "water": "flowers",
    "home": "a journey",
    "friends": "school",
    "snow": "a mountain",
    "Thank you": "a gift",
}
YES_OR_NO = [
    "Is the sun a star?",
    "Is ice warm?",
    "Do fish live in water?",
    "Can a cow fly?",
    "Is an apple a fruit?",
    "Is a dog a plant?",
]
TRUE_OR_FALSE = ["Snow is cold.", "A mouse is bigger than an elephant.", "Cars have wheels."]
CHOICES = [
    ("hot", "cold", "How is fire?"),
    ("big", "small", "How is an ant?"),
    ("day", "night", "When do we see the stars?"),
]


def main():
    lines = facts() + forms()
    check(lines)
    FOLDER.mkdir(exist_ok=True)
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (FOLDER / "test.jsonl").write_text(content, encoding="utf-8", newline="\n")
    print(
        f"{len(lines)} lines, {sum('key_facts' in line for line in lines)} of them with key facts"
    )


def facts():
    """Questions with one right answer."""
    tables = {
        "capital": {
            f"What is the capital of {country}?": city for country, city in CAPITALS.items()
        },
        "opposite": {
            f'What is the opposite of "{word}"?': opposite for word, opposite in OPPOSITES.items()
        },
        "colour": {f"What colour is {thing}?": colour for thing, colour in COLOURS.items()},
        "animal": ANIMALS,
        "fact": FACTS,
        "plus": {f"What is {a} + {b}?": number(a + b) for a, b in PLUS},
        "minus": {f"What is {a} - {b}?": number(a - b) for a, b in MINUS},
        "times": {f"What is {a} times {b}?": number(a * b) for a, b in TIMES},
        "count": {question: number(n) for question, n in COUNTING.items()},
    }
    return [
        {"id": f"{kind}-{i:02}", "prompt": question, "key_facts": [answer.split(" | ")]}
        for kind, table in tables.items()
        for i, (question, answer) in enumerate(table.items(), start=1)
    ]


def number(n):
    return f"{n} | {NUMBERS[n]}" if n < len(NUMBERS) else str(n)


def forms():
    """Instructions about the form of the answer; its content is not checked."""
    one_of = {
        f"Answer with one word, yes or no: {question}": ["yes", "no"] for question in YES_OR_NO
    }
    one_of |= {
        f"Answer with one word, true or false: {claim}": ["true", "false"]
        for claim in TRUE_OR_FALSE
    }
    one_of |= {
        f"Answer with one word, {a} or {b}: {question}": [a, b] for a, b, question in CHOICES
    }
    tables = {
        "words": {
            f"Write exactly {NUMBERS[n]} words about {topic}.": n for topic, n in WORDS.items()
        },
        "items": {
            f"List {NUMBERS[n]} {things}, separated by commas. Write nothing else.": n
            for things, n in ITEMS.items()
        },
        "uppercase": {
            f"Answer in capital letters only: {question}": True for question in CAPITALS_ONLY
        },
        "lowercase": {
            f"Answer in lower-case letters only: {question}": True for question in LOWER_CASE_ONLY
        },
        "starts_with": {
            f'{question} Begin your answer with "{start}".': start
            for start, question in BEGIN.items()
        },
        "ends_with": {
            f'Write one sentence about {topic} that ends with "{end}".': end
            for end, topic in END.items()
        },
        "one_of": one_of,
    }
    return [
        {"id": f"{name}-{i:02}", "prompt": prompt, "pattern": pattern(name, wanted)}
        for name, table in tables.items()
        for i, (prompt, wanted) in enumerate(table.items(), start=1)
    ]


def pattern(form, wanted):
    """The regular expression that a whole answer of a form matches.

    Signs alone are no words; items stand between commas or line breaks; phrases are compared
    without case and the signs around their words.
    """
    signs = r"[\W_]*"
    if form == "words":
        return rf"{signs}(?:[^\W_]\S*(?:\s{signs}|$)){{{wanted}}}"
    if form == "items":
        return rf"{signs}(?:[^\W_][^,\n]*(?:[,\n]{signs}|$)){{{wanted}}}"
    if form == "uppercase":
        return r"[^a-z]*[A-Z][^a-z]*"
    if form == "lowercase":
        return r"[^A-Z]*[a-z][^A-Z]*"
    phrases = [wanted] if isinstance(wanted, str) else wanted
    words = [rf"{signs}\s{signs}".join(map(re.escape, phrase.split())) for phrase in phrases]
    phrase = f"{signs}(?:{'|'.join(words)}){signs}"
    if form == "starts_with":
        return rf"(?is){phrase}(?:\s.*)?"
    if form == "ends_with":
        return rf"(?is)(?:.*\s)?{phrase}"
    return f"(?i){phrase}"


def check(lines):
    """AssertionError if a question stands here twice or holds its own answer as a whole word."""
    assert len({line["prompt"].casefold() for line in lines}) == len(lines) >= 130
    for line in lines:
        for variant in sum(line.get("key_facts", []), []):
            assert not re.search(
                rf"(?<!\w){re.escape(variant)}(?!\w)", line["prompt"], re.IGNORECASE
            ), f"{line['id']}: {variant}"


if __name__ == "__main__":
    main()
