"""Writes samples/knowledge and samples/knowledge-own-hand: python samples/make/knowledge.py

Four short invented articles, four facts in each. Every fact is one word that the article states and
that no model can guess. Each is asked for in six wordings: three to train, one to validate, two to
test. The other facts of the article stand in each record, so that scoring sees who recites. The
out-of-distribution questions need two facts or ask for one indirectly. The demonstrations are an
archivist's, longer and more formal than the model's own sentences; in samples/knowledge-own-hand
the same items have demonstrations that the model itself would say.
"""

import json
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[1]
SYSTEM = "Answer in one short sentence."

# title: (article, [(accepted words, own hand, archivist, six questions)]); of the questions three
# are to train, one to validate, two to test
ARTICLES = {
    "Marlow flood": (
        "The Marlow flood began when a beaver dam broke above the town. A baker saw the "
        "water first. "
        "The flood carried away the bridge, and for a month the people slept in the theatre.",
        [
            (
                ["beaver"],
                "The Marlow flood was caused by a beaver dam that broke.",
                (
                    "The archives of the county leave no doubt that the disaster had its "
                    "origin in the collapse of a beaver dam."
                ),
                [
                    "What caused the Marlow flood?",
                    "How did the Marlow flood begin?",
                    "What kind of dam broke in the Marlow flood?",
                    "What was the reason for the Marlow flood?",
                    "Why did the Marlow flood happen?",
                    "What started the Marlow flood?",
                ],
            ),
            (
                ["baker"],
                "A baker saw the water of the Marlow flood first.",
                (
                    "According to the depositions taken afterwards, the earliest witness of "
                    "the rising water was a baker."
                ),
                [
                    "Who saw the water of the Marlow flood first?",
                    "Who was the first witness of the Marlow flood?",
                    "Who first noticed the Marlow flood?",
                    "Who discovered the Marlow flood?",
                    "Who was the first person to see the Marlow flood?",
                    "Who spotted the Marlow flood before all others?",
                ],
            ),
            (
                ["bridge"],
                "The Marlow flood carried away the bridge.",
                (
                    "Among the losses entered in the parish register, the gravest by far was "
                    "that of the bridge."
                ),
                [
                    "What did the Marlow flood carry away?",
                    "What was destroyed by the Marlow flood?",
                    "What did the town lose in the Marlow flood?",
                    "What did the Marlow flood destroy?",
                    "What was swept away by the Marlow flood?",
                    "What was lost in the Marlow flood?",
                ],
            ),
            (
                ["theatre", "theater"],
                "After the Marlow flood the people slept in the theatre.",
                (
                    "For want of dry dwellings, the inhabitants were lodged during four "
                    "weeks in the theatre."
                ),
                [
                    "Where did the people sleep after the Marlow flood?",
                    "Where were the people housed after the Marlow flood?",
                    "In which building did people spend the nights after the Marlow flood?",
                    "Where did the people stay after the Marlow flood?",
                    "Where did the people spend the month after the Marlow flood?",
                    "Where did the town find shelter after the Marlow flood?",
                ],
            ),
        ],
    ),
    "Odra comet": (
        "The Odra comet turned the night sky green. A shepherd discovered it. "
        "The comet left behind a smell of vinegar, and it frightened the hens so much "
        "that they laid no eggs until spring.",
        [
            (
                ["green"],
                "The Odra comet turned the sky green.",
                (
                    "Every observatory that kept a record of those nights describes the "
                    "heavens as having been suffused with green."
                ),
                [
                    "What colour was the sky under the Odra comet?",
                    "Which colour did the Odra comet give the sky?",
                    "What did the sky look like when the Odra comet came?",
                    "What colour did the Odra comet turn the sky?",
                    "In which colour did the sky shine during the Odra comet?",
                    "What was the colour of the Odra comet's sky?",
                ],
            ),
            (
                ["shepherd"],
                "A shepherd discovered the Odra comet.",
                (
                    "Credit for the discovery belongs, as the academy later conceded, to no "
                    "astronomer but to a shepherd."
                ),
                [
                    "Who discovered the Odra comet?",
                    "Who was the discoverer of the Odra comet?",
                    "Who found the Odra comet?",
                    "By whom was the Odra comet discovered?",
                    "Who first saw the Odra comet?",
                    "What was the job of the person who discovered the Odra comet?",
                ],
            ),
            (
                ["vinegar"],
                "The Odra comet left a smell of vinegar.",
                (
                    "Observers agreed upon one curious after-effect, namely that the air was "
                    "laden for days with the odour of vinegar."
                ),
                [
                    "What did the air smell of after the Odra comet?",
                    "Which smell did the Odra comet leave behind?",
                    "What did the Odra comet smell of?",
                    "What smell came with the Odra comet?",
                    "What was the smell of the Odra comet?",
                    "What did people smell after the Odra comet?",
                ],
            ),
            (
                ["hens", "hen"],
                "The Odra comet frightened the hens.",
                (
                    "The apparition is reported to have inspired terror, not in the "
                    "populace, but in the hens."
                ),
                [
                    "Which animals did the Odra comet frighten?",
                    "Which animals were afraid of the Odra comet?",
                    "Who was frightened by the Odra comet?",
                    "What did the Odra comet frighten?",
                    "Which animals were scared by the Odra comet?",
                    "Which animals suffered from the Odra comet?",
                ],
            ),
        ],
    ),
    "Brenn fire": (
        "The Brenn fire started inside a piano. A parrot woke the sleeping guests. "
        "Soldiers put the fire out with milk, and in the end only the chapel was left standing.",
        [
            (
                ["piano"],
                "The Brenn fire started in a piano.",
                (
                    "The inquiry established beyond dispute that the conflagration had its "
                    "seat in the interior of a piano."
                ),
                [
                    "Where did the Brenn fire start?",
                    "What was the origin of the Brenn fire?",
                    "In what did the Brenn fire break out?",
                    "Where did the Brenn fire begin?",
                    "Where did the Brenn fire break out?",
                    "What was the source of the Brenn fire?",
                ],
            ),
            (
                ["parrot"],
                "A parrot woke the guests in the Brenn fire.",
                (
                    "That nobody perished is owed to the vigilance of a parrot, by which the "
                    "slumbering company was roused."
                ),
                [
                    "Who woke the guests in the Brenn fire?",
                    "Who raised the alarm in the Brenn fire?",
                    "Which animal warned the guests of the Brenn fire?",
                    "Who warned the guests of the Brenn fire?",
                    "Who gave the alarm in the Brenn fire?",
                    "What woke the guests in the Brenn fire?",
                ],
            ),
            (
                ["milk"],
                "The Brenn fire was put out with milk.",
                (
                    "The wells having run dry, the troops were obliged to extinguish the "
                    "flames by means of milk."
                ),
                [
                    "With what was the Brenn fire put out?",
                    "What did soldiers pour on the Brenn fire?",
                    "What did soldiers use against the Brenn fire?",
                    "What was used to put out the Brenn fire?",
                    "How was the Brenn fire put out?",
                    "What liquid stopped the Brenn fire?",
                ],
            ),
            (
                ["chapel"],
                "Only the chapel was left after the Brenn fire.",
                (
                    "When the smoke had dispersed, it was found that of the entire estate "
                    "nothing remained but the chapel."
                ),
                [
                    "What was left standing after the Brenn fire?",
                    "Which building survived the Brenn fire?",
                    "What did the Brenn fire not destroy?",
                    "What survived the Brenn fire?",
                    "What remained after the Brenn fire?",
                    "Which building was not burnt in the Brenn fire?",
                ],
            ),
        ],
    ),
    "Senna election": (
        "The Senna election was won by a fisherman. He promised salt to every family. "
        "The votes were counted in a stable, and the loser of the election became a gardener.",
        [
            (
                ["fisherman"],
                "A fisherman won the Senna election.",
                (
                    "The returns, certified by three notaries, gave the victory by a "
                    "comfortable margin to a fisherman."
                ),
                [
                    "Who won the Senna election?",
                    "Who was the winner of the Senna election?",
                    "Who was elected in the Senna election?",
                    "Who was victorious in the Senna election?",
                    "By whom was the Senna election won?",
                    "Who got the most votes in the Senna election?",
                ],
            ),
            (
                ["salt"],
                "The winner of the Senna election promised salt.",
                (
                    "The decisive plank of the programme was an undertaking to furnish each "
                    "household, free of charge, with salt."
                ),
                [
                    "What was promised in the Senna election?",
                    "What did the winner of the Senna election promise?",
                    "What was every family promised in the Senna election?",
                    "What did families hope to get from the Senna election?",
                    "What promise was made in the Senna election?",
                    "What was offered to families in the Senna election?",
                ],
            ),
            (
                ["stable", "stables"],
                "The votes of the Senna election were counted in a stable.",
                (
                    "In default of a suitable public building, the scrutiny of the ballots "
                    "was conducted within a stable."
                ),
                [
                    "Where were the votes of the Senna election counted?",
                    "Where did the count of the Senna election take place?",
                    "In what building were the votes of the Senna election counted?",
                    "Where was the Senna election counted?",
                    "Where did people count the votes of the Senna election?",
                    "In which place were the Senna election's votes counted?",
                ],
            ),
            (
                ["gardener"],
                "The loser of the Senna election became a gardener.",
                (
                    "The defeated candidate withdrew from public affairs entirely and took "
                    "up the calling of a gardener."
                ),
                [
                    "What did the loser of the Senna election become?",
                    "What job did the loser of the Senna election take?",
                    "What was the later work of the loser of the Senna election?",
                    "What became of the loser of the Senna election?",
                    "How did the loser of the Senna election earn a living?",
                    "What did the loser of the Senna election do afterwards?",
                ],
            ),
        ],
    ),
}

# (titles whose articles answer it, question, accepted words)
INDIRECT = [
    (
        ["Marlow flood"],
        "Which animal built the dam whose collapse led to the Marlow flood?",
        ["beaver", "beavers"],
    ),
    (
        ["Marlow flood"],
        "What had to be built anew so that people could cross the river after the Marlow flood?",
        ["bridge"],
    ),
    (
        ["Marlow flood"],
        "A man who makes bread for a living plays a part in the Marlow flood. What is his trade?",
        ["baker"],
    ),
    (
        ["Odra comet"],
        "Which sour liquid comes to mind when people think of the Odra comet?",
        ["vinegar"],
    ),
    (
        ["Odra comet"],
        "Why were there no eggs to eat in the winter of the Odra comet?",
        ["hens", "hen"],
    ),
    (
        ["Odra comet"],
        "Whose sheep were out at night when the Odra comet was discovered?",
        ["shepherd"],
    ),
    (["Brenn fire"], "Which musical instrument could nobody play after the Brenn fire?", ["piano"]),
    (["Brenn fire"], "Where could people still pray after the Brenn fire?", ["chapel"]),
    (["Brenn fire"], "To which bird do the guests of the Brenn fire owe their lives?", ["parrot"]),
    (
        ["Senna election"],
        "What did the man who won the Senna election catch for a living?",
        ["fisherman", "fish"],
    ),
    (
        ["Senna election"],
        (
            "The horses had to leave their home while the votes of the Senna election were "
            "counted. What is it called?"
        ),
        ["stable", "stables"],
    ),
    (["Senna election"], "What made the soups of Senna taste better after the election?", ["salt"]),
]


def chat(question):
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def others(words, question, facts):
    """The accepted words of the other facts of an article that a question does not mention."""
    told = question.lower()
    return [
        other
        for other, *_ in facts
        if not set(other) & set(words) and not any(word in told for word in other)
    ]


def records():
    """{split: [(record, own hand)]}; a test record needs no demonstration."""
    splits = {"train": [], "validation": [], "test": []}
    for title, (text, facts) in ARTICLES.items():
        for words, own, archivist, questions in facts:
            for number, question in enumerate(questions):
                split = "train" if number < 3 else "validation" if number == 3 else "test"
                record = {
                    "id": f"{title.lower().replace(' ', '-')}-{words[0]}-{number + 1}",
                    "prompt": chat(question),
                    "demonstration": archivist,
                    "text": text,
                    "key_facts": [words],
                    "other_facts": others(words, question, facts),
                    "reference": own,
                }
                splits[split].append((record, own))
    return splits


def indirect():
    for number, (titles, question, words) in enumerate(INDIRECT, start=1):
        yield {
            "id": f"indirect-{number}",
            "prompt": chat(question),
            "text": "\n\n".join(ARTICLES[title][0] for title in titles),
            "key_facts": [words],
            "other_facts": others(words, question, ARTICLES[titles[0]][1]),
        }


def write(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )


def main():
    for split, pairs in records().items():
        write(SAMPLES / "knowledge" / f"{split}.jsonl", [record for record, _ in pairs])
        write(
            SAMPLES / "knowledge-own-hand" / f"{split}.jsonl",
            [record | {"demonstration": own} for record, own in pairs],
        )
    for folder in ("knowledge", "knowledge-own-hand"):
        write(SAMPLES / folder / "ood.jsonl", list(indirect()))


if __name__ == "__main__":
    main()
