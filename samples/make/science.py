"""Writes samples/science and samples/science-own-hand: python samples/make/science.py

The family of an organic compound, read from the end of its name: 15 chain lengths times eight
families. The rule (-al marks an aldehyde) is learned from some compounds and tested on others;
test_new_stems.jsonl has chain lengths that no other file contains. The question is open: it lists
no families. The gold answer is a plural, so that no article (an aldehyde, a ketone) gives it away.
"acid" alone does not count: it stands in the compound's own name. The demonstrations are an
expert's: the answer, then the rule in the words of a handbook. In samples/science-own-hand the same
items have only the sentence that the model itself would say.
"""

import json
import random
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[1]
SYSTEM = "Answer in one short sentence."
FAMILIES = {  # what follows the stem: (suffix of the rule, gold answer, other accepted words)
    "ane": ("-ane", "alkanes", ["alkane"]),
    "ene": ("-ene", "alkenes", ["alkene"]),
    "yne": ("-yne", "alkynes", ["alkyne"]),
    "anol": ("-ol", "alcohols", ["alcohol"]),
    "anal": ("-al", "aldehydes", ["aldehyde"]),
    "anone": ("-one", "ketones", ["ketone"]),
    "anoic acid": ("-oic acid", "carboxylic acids", ["carboxylic acid", "acids"]),
    "anamine": ("-amine", "amines", ["amine"]),
}
OPTIONS = [[gold, *others] for _, gold, others in FAMILIES.values()]
STEMS = "prop but pent hex hept oct non dec undec dodec tridec tetradec".split()
STEMS += "pentadec hexadec octadec".split()
NEW_STEMS = ["heptadec", "nonadec", "icos", "docos"]
COMPOUNDS_A_FAMILY = {"test": 5, "validation": 3}  # the rest, 7 of 15, is for training


def record(stem, ending, own_hand):
    suffix, gold, _ = FAMILIES[ending]
    name = stem + ending
    answer = f"{name.capitalize()} belongs to the family of {gold}."
    rule = (
        f" The nomenclature of IUPAC reserves the suffix {suffix} for that class and for no other."
    )
    return {
        "id": name.replace(" ", "-"),
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {
                "role": "user",
                "content": f"To which family of organic compounds does {name} belong?",
            },
        ],
        "demonstration": answer if own_hand else answer + rule,
        "answer": gold,
        "options": OPTIONS,
        "reference": answer,
    }


def splits():
    """{split: [(stem, ending)]}, no compound in two of them."""
    shuffle, chosen = random.Random(0), {"test": [], "validation": [], "train": []}
    for ending in FAMILIES:
        stems = shuffle.sample(STEMS, len(STEMS))
        for split, count in COMPOUNDS_A_FAMILY.items():
            chosen[split] += [(stem, ending) for stem in stems[:count]]
            stems = stems[count:]
        chosen["train"] += [(stem, ending) for stem in stems]
    for compounds in chosen.values():
        shuffle.shuffle(compounds)
    return chosen | {
        "test_new_stems": [(stem, ending) for stem in NEW_STEMS for ending in FAMILIES]
    }


def main():
    for folder, own_hand in (("science", False), ("science-own-hand", True)):
        (SAMPLES / folder).mkdir(exist_ok=True)
        for split, compounds in splits().items():
            lines = [
                json.dumps(record(*compound, own_hand), ensure_ascii=False) + "\n"
                for compound in compounds
            ]
            (SAMPLES / folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
