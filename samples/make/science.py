"""Write samples/science/{train,validation,test}.jsonl: four-option chemistry questions with worked answers.

    python samples/make/science.py

No answer is typed in: each is computed from the tables at the end of this file, and the wrong options are the results
of typical mistakes. Masses are rounded to one decimal before they are used, so that every calculation shown gives the
result shown. Every run writes the same bytes.
"""

import json
import math
import re
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from random import Random
from typing import Callable, NamedTuple

ASK = 'Answer briefly with the calculation, and end with "The correct answer is" and its letter.'
LETTERS = "ABCD"
SEED = 2026
SPLITS = {"train": 28, "validation": 4, "test": 8}  # questions of each kind: 70 / 10 / 20 %
FOLDER = Path(__file__).resolve().parent.parent / "science"


class Question(NamedTuple):
    name: str  # unique within its kind
    text: str
    calculation: str  # all but the result
    truth: int | Decimal
    mistakes: list  # wrong results; choose_mistakes drops repeats, the truth itself and absurd values
    show: Callable = str  # value -> text of the option
    plausible: Callable = lambda value: value > 0


def main():
    splits = make_splits(Random(SEED))
    check(splits)
    FOLDER.mkdir(exist_ok=True)
    for split, lines in splits.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (FOLDER / f"{split}.jsonl").write_bytes(text.encode("utf-8"))  # bytes: text mode writes \r\n on Windows
        print(f"{split}: {len(lines)} questions")


def make_splits(rng):
    """Each split has the same number of questions of every kind and, within one, the same number of every right letter."""
    questions = {split: [] for split in SPLITS}
    for kind, make_questions in KINDS.items():
        drawn = shuffled(rng, make_questions(rng))
        for split, count in SPLITS.items():
            questions[split] += [(kind, question) for question in drawn[:count]]
            drawn = drawn[count:]
    splits = {}
    for split, pairs in questions.items():
        letters = shuffled(rng, [LETTERS[i % 4] for i in range(len(pairs))])
        splits[split] = [make_line(rng, *pair, letter) for pair, letter in zip(shuffled(rng, pairs), letters)]
    return splits


def make_line(rng, kind, question, letter):
    options = [question.show(value) for value in choose_mistakes(rng, question)]
    options.insert(LETTERS.index(letter), question.show(question.truth))
    return {
        "id": re.sub("[^a-z0-9]+", "-", f"{kind} {question.name}".lower()).strip("-"),
        "prompt": "\n".join([question.text, *(f"{name}: {option}" for name, option in zip(LETTERS, options)), ASK]),
        "demonstration": f"The calculation is {question.calculation} {question.show(question.truth)}. The correct answer is {letter}.",
        "answer": letter,
    }


def choose_mistakes(rng, question):
    """Three wrong values, in random order."""
    truth, wrong = question.truth, {}
    gap = min(Decimal("0.9"), abs(truth) / Decimal(50))  # more than the rounding of the masses can shift a result
    for value in question.mistakes:
        text = question.show(value)
        if abs(value - truth) >= gap and text != question.show(truth) and question.plausible(value):
            wrong[text] = value
    below = [value for value in wrong.values() if value < truth]
    above = [value for value in wrong.values() if value > truth]
    # drawn first, so that the truth is not always the middle option
    sizes = [n for n in range(4) if n <= len(below) and 3 - n <= len(above)]
    if not sizes:
        raise ValueError(f"{question.text}: only {len(wrong)} different mistakes; three are needed")
    n_below = shuffled(rng, sizes)[0]
    return shuffled(rng, shuffled(rng, below)[:n_below] + shuffled(rng, above)[: 3 - n_below])


def shuffled(rng, items):
    # random() is the one method whose sequence Python promises to keep from version to version
    return sorted(items, key=lambda _: rng.random())


def check(splits):
    lines = [line for split in splits.values() for line in split]
    assert len({line["id"] for line in lines}) == len({line["prompt"].split("\n")[0] for line in lines}) == len(lines), "repeated"
    assert len(lines) >= 360 and len(KINDS) >= 8, "no kind may hold more than a quarter of the questions"
    assert len(splits["validation"]) >= 32 and len(splits["test"]) >= 64
    for split, lines in splits.items():
        letters = Counter(line["answer"] for line in lines)
        assert len(lines) == SPLITS[split] * len(KINDS), "a kind has too few questions"
        assert all(0.22 <= letters[letter] / len(lines) <= 0.28 for letter in LETTERS), letters
        for line in lines:
            _, *listed, ask = line["prompt"].split("\n")
            options = dict(option.split(": ") for option in listed)
            assert "".join(options) == LETTERS and len(set(options.values())) == 4 and ask == ASK, line
            answer = line["answer"]
            assert line["demonstration"].endswith(f" {options[answer]}. The correct answer is {answer}."), line
            assert max(len(line["prompt"]) // 3, len(line["demonstration"]) // 3) <= 75, line  # 3 characters: about a token


# ---- kinds of questions; each function yields more than the splits take


def molar_mass(rng):
    for formula in FORMULAS:
        yield Question(
            formula, f"What is the molar mass of {formula}?", f"{mass_sum(formula)} =",
            mass_of(formula), mass_mistakes(formula), lambda mass: f"{mass} g/mol")


def moles_from_mass(rng):
    for formula in SHORT_FORMULAS:
        molar = mass_of(formula)
        moles = shuffled(rng, [n for n in AMOUNTS if n * molar == tenth(n * molar)])[0]
        mass = tenth(moles * molar)
        mistakes = [mass / wrong for wrong in mass_mistakes(formula)] + [molar / mass, moles * 2, moles / 2, moles * 10]
        yield Question(
            formula, f"How many moles are {mass} g of {formula}?", f"{mass} / ({mass_sum(formula)}) =",
            moles, tenths(mistakes), lambda n: f"{n} mol")


def mass_percent(rng):
    for formula in SHORT_FORMULAS:
        atoms, molar = count_atoms(formula), mass_of(formula)
        element = shuffled(rng, atoms)[0]
        one, part = MASS[element], atoms[element] * MASS[element]
        fractions = [one / molar, part / sum(MASS[e] for e in atoms), Decimal(atoms[element]) / sum(atoms.values())]
        fractions += [atoms[e] * MASS[e] / molar for e in atoms] + [1 - part / molar, (part + one) / molar, part / (molar + one)]
        yield Question(
            f"{element} in {formula}", f"What is the mass percent of {element} in {formula}?",
            f"{part} / ({mass_sum(formula)}) =", tenth(100 * part / molar),
            tenths(100 * fraction for fraction in fractions), lambda share: f"{share} %", lambda share: 0 < share < 100)


def atoms_in_formula(rng):
    for formula in FORMULAS:
        terms, atoms = parse(formula), count_atoms(formula)
        total = sum(atoms.values())
        if len(atoms) > 2:
            bare = sum(subscript for _, subscript, _ in terms)
            mistakes = [bare, len(atoms), total - 1, total + 1, total + 2, max(atoms.values()), total * 2]
            calculation = " + ".join(f"{count} {element}" for element, count in atoms.items())
            yield Question(f"all {formula}", f"How many atoms are in the formula {formula}?", f"{calculation} =", total, mistakes)
        for element, count in atoms.items():
            places = [(subscript, group) for e, subscript, group in terms if e == element]
            calculation = " + ".join(f"{group} x {subscript}" if group > 1 else f"{subscript}" for subscript, group in places)
            if "x" in calculation or "+" in calculation:
                subscript, group = places[-1]
                mistakes = [subscript, group, subscript + group, count - 1, count + 1, count + 2, total, count * 2]
                yield Question(
                    f"{element} in {formula}", f"How many {element} atoms are in the formula {formula}?",
                    f"{calculation} =", count, mistakes)


def oxidation_state(rng):
    for pair in OXIDATION.split(","):
        substance, element = pair.split()
        formula, charge = split_charge(substance)
        atoms = count_atoms(formula)
        count = atoms.pop(element)
        others = sum(n * FIXED_STATE[e] for e, n in atoms.items())
        state, rest = divmod(charge - others, count)
        if rest:
            raise ValueError(f"{substance}: {element} has no whole oxidation state")
        known = {e: f"({FIXED_STATE[e]})" if FIXED_STATE[e] < 0 else FIXED_STATE[e] for e in atoms}
        calculation = " - ".join([str(charge), *(times(n, known[e]) for e, n in atoms.items())])
        forgot_subscripts = charge - sum(FIXED_STATE[e] for e in atoms)
        mistakes = [-state, charge - others, -others // count, forgot_subscripts, state - 1, state + 1, state - 2, state + 2]
        yield Question(
            f"{element} in {substance}", f"What is the oxidation state of {element} in {substance}?",
            f"({calculation}) / {count} =" if count > 1 else f"{calculation} =",
            state, mistakes, lambda n: f"{n:+d}" if n else "0", lambda n: -4 <= n <= 8)


def electrons_in_ion(rng):
    for ion in IONS.split():
        formula, charge = split_charge(ion)
        atoms = count_atoms(formula)
        protons = sum(n * NUMBER[e] for e, n in atoms.items())
        electrons = protons - charge
        bare = sum(NUMBER[e] for e in atoms) - charge
        mistakes = [protons, protons + charge, bare, electrons - 1, electrons + 1, electrons + 2, electrons - 2, int(mass_of(formula))]
        calculation = " + ".join(times(n, NUMBER[e]) for e, n in atoms.items())
        yield Question(
            f"{formula} {abs(charge)} {'plus' if charge > 0 else 'minus'}", f"How many electrons are in one {ion} ion?",
            f"{calculation} {'-' if charge > 0 else '+'} {abs(charge)} =", electrons, mistakes)


def neutrons_in_isotope(rng):
    for isotope in ISOTOPES.split():
        element, mass_number = isotope.split("-")
        nucleons, protons = int(mass_number), NUMBER[element]
        neutrons = nucleons - protons
        mistakes = [protons, nucleons, nucleons + protons, neutrons - 1, neutrons + 1, neutrons - 2, neutrons + 2]
        yield Question(
            isotope, f"How many neutrons are in one atom of {isotope}?", f"{nucleons} - {protons} =", neutrons, mistakes)


def balancing(rng):
    for equation in EQUATIONS:
        reactants, products = parse_equation(equation)
        sides = {**reactants, **products}
        substance = shuffled(rng, sides)[0]
        coefficient = sides[substance]
        skeleton = " -> ".join(" + ".join(side) for side in (reactants, products))
        mistakes = [*sides.values(), coefficient - 1, coefficient + 1, coefficient + 2, coefficient + 3]
        yield Question(
            f"{substance} in {skeleton}",
            f"Balance {skeleton} with the smallest whole numbers. What is the coefficient of {substance}?",
            f"{equation}, so the coefficient of {substance} is", coefficient, mistakes)


def stoichiometry(rng):
    for equation in sorted(EQUATIONS, key=len)[:40]:  # the others make long prompts
        reactants, products = parse_equation(equation)
        pairs = [(r, p) for r in reactants for p in products if reactants[r] != products[p]]
        reactant, product = shuffled(rng, pairs)[0]
        used, formed = reactants[reactant], products[product]
        given = shuffled(rng, AMOUNTS)[0] * used
        truth = tenth(given * formed / used)
        mistakes = [given * used / formed, given, given * formed, given / used, given * used, truth + given, truth * 2, truth / 2]
        yield Question(
            f"{product} from {reactant} in {equation}", f"For {equation}, how many moles of {product} form from {given} mol of {reactant}?",
            f"{given} x {formed} / {used} =", truth, tenths(mistakes), lambda moles: f"{moles} mol")


def ph(rng):
    for n in range(1, 7):  # not 7: there water's own ions count
        concentration = f"{Decimal(10) ** -n:f} mol/L"
        mistakes = [n, 14 - n, n - 1, n + 1, n + 2, 12 - n, 13 - n, 15 - n, 7]
        for acid in ("HCl", "HBr", "HI", "HNO3"):
            yield Question(
                f"{n} {acid}", f"What is the pH of {concentration} {acid}?", f"[H+] = 10^-{n} mol/L, so the pH is", n, mistakes)
        for base in ("NaOH", "KOH", "LiOH"):
            yield Question(
                f"{n} {base}", f"What is the pH of {concentration} {base} at 25 C?",
                f"[OH-] = 10^-{n} mol/L, so the pH is 14 - {n} =", 14 - n, mistakes)
    for n in range(1, 14):
        yield Question(
            f"reversed {n}", f"What is [H+], in mol/L, at pH {n}?", "[H+] = 10^-pH =",
            -n, [n - 14, 1 - n, 2 - n, -n - 1, n - 15], lambda power: f"10^{power}", lambda power: power < 0)


# ---- chemistry


def parse(formula):
    """"Ca(NO3)2" -> [("Ca", 1, 1), ("N", 1, 2), ("O", 3, 2)]: element, subscript, multiplier of its group."""
    if not re.fullmatch(r"(\(([A-Z][a-z]?\d*)+\)\d*|[A-Z][a-z]?\d*)+", formula):
        raise ValueError(f"{formula}: not a formula such as Ca(NO3)2")
    terms = []
    for group, multiplier, element, subscript in re.findall(r"\(([^)]*)\)(\d*)|([A-Z][a-z]?)(\d*)", formula):
        if group:
            terms += [(inner, count, int(multiplier or 1)) for inner, count, _ in parse(group)]
        else:
            terms.append((element, int(subscript or 1), 1))
    return terms


def count_atoms(formula):
    atoms = {}
    for element, subscript, multiplier in parse(formula):
        atoms[element] = atoms.get(element, 0) + subscript * multiplier
    return atoms


def split_charge(substance):
    """"SO4^2-" -> ("SO4", -2)."""
    formula, _, charge = substance.partition("^")
    return formula, int(charge[-1] + (charge[:-1] or "1")) if charge else 0


def parse_equation(equation):
    """"2 H2 + O2 -> 2 H2O" -> ({"H2": 2, "O2": 1}, {"H2O": 2}); raises if atoms are lost or a common factor is left."""
    sides, atoms = [], []
    for side in equation.split(" -> "):
        terms = [term.split(" ") for term in side.split(" + ")]
        sides.append({term[-1]: int(term[0]) if len(term) == 2 else 1 for term in terms})
        atoms.append(Counter())
        for formula, coefficient in sides[-1].items():
            atoms[-1].update({element: coefficient * count for element, count in count_atoms(formula).items()})
    if atoms[0] != atoms[1] or math.gcd(*sides[0].values(), *sides[1].values()) != 1:
        raise ValueError(f"{equation}: not balanced with the smallest whole numbers: {atoms[0]} -> {atoms[1]}")
    return sides


def mass_of(formula):
    return sum(count * MASS[element] for element, count in count_atoms(formula).items())


def mass_sum(formula):
    return " + ".join(times(count, MASS[element]) for element, count in count_atoms(formula).items())


def mass_mistakes(formula):
    """Molar masses from a forgotten subscript or bracket, an atom too many, atomic numbers instead of masses."""
    atoms, molar = count_atoms(formula), mass_of(formula)
    forgotten = [molar - (count - 1) * MASS[element] for element, count in atoms.items()]
    no_bracket = sum(subscript * MASS[element] for element, subscript, _ in parse(formula))
    one_more = [molar + MASS[element] for element in atoms]
    factor = parse(formula)[-1][1]  # the last subscript taken for the whole formula
    numbers = sum(count * NUMBER[element] for element, count in atoms.items())
    return [*forgotten, no_bracket, *one_more, factor * sum(MASS[e] for e in atoms), Decimal(numbers).quantize(TENTH)]


def times(count, value):
    return f"{value}" if count == 1 else f"{count} x {value}"


def tenth(value):
    return Decimal(value).quantize(TENTH, ROUND_HALF_UP)


def tenths(values):
    return [tenth(value) for value in values]


# ---- tables

# symbol, atomic number, standard atomic mass
ELEMENTS = """
H 1 1.008, He 2 4.003, Li 3 6.940, Be 4 9.012, B 5 10.810, C 6 12.011, N 7 14.007, O 8 15.999, F 9 18.998, Ne 10 20.180,
Na 11 22.990, Mg 12 24.305, Al 13 26.982, Si 14 28.085, P 15 30.974, S 16 32.060, Cl 17 35.450, Ar 18 39.950, K 19 39.098,
Ca 20 40.078, Ti 22 47.867, V 23 50.942, Cr 24 51.996, Mn 25 54.938, Fe 26 55.845, Co 27 58.933, Ni 28 58.693, Cu 29 63.546,
Zn 30 65.380, As 33 74.922, Se 34 78.971, Br 35 79.904, Sr 38 87.620, Ag 47 107.868, Cd 48 112.414, Sn 50 118.710,
I 53 126.904, Cs 55 132.905, Ba 56 137.327, Hg 80 200.592, Pb 82 207.200, U 92 238.029
"""
TENTH = Decimal("0.1")
NUMBER = {symbol: int(number) for symbol, number, _ in (row.split() for row in ELEMENTS.split(","))}
MASS = {symbol: tenth(mass) for symbol, _, mass in (row.split() for row in ELEMENTS.split(","))}
AMOUNTS = [Decimal(text) for text in "0.2 0.5 1.5 2.0 2.5 3.0 4.0 5.0".split()]

SHORT_FORMULAS = """
H2O CO2 CO NH3 CH4 C2H6 C3H8 C2H4 SO2 SO3 NO2 N2O H2S HCl HBr NaCl KCl KBr KI NaF MgO CaO Al2O3 Fe2O3 CuO ZnO SiO2 PCl3
CaCl2 MgCl2 AlCl3 FeCl3 NaOH KOH HNO3 H2SO4 H3PO4 Na2CO3 CaCO3 NaNO3 KNO3 AgNO3 CH3OH C2H5OH CS2 TiO2 BaCl2 Na2SO4
""".split()
FORMULAS = SHORT_FORMULAS + """
Ca(OH)2 Mg(OH)2 Al(OH)3 Fe(OH)3 Ba(OH)2 Ca(NO3)2 Mg(NO3)2 Cu(NO3)2 Pb(NO3)2 Fe(NO3)3 Al(NO3)3 Al2(SO4)3 Fe2(SO4)3
(NH4)2SO4 (NH4)2CO3 (NH4)3PO4 Ca3(PO4)2 Mg3(PO4)2 Ca(HCO3)2 NH4NO3 NH4Cl CH3COOH C6H12O6 KMnO4 K2Cr2O7 NaHCO3 Na3PO4
""".split()

FIXED_STATE = {"H": 1, "O": -2, "F": -1, "Cl": -1, "Na": 1, "K": 1, "Ca": 2}
# substance and the element asked for; every other element in it has its fixed state
OXIDATION = """
KMnO4 Mn, K2Cr2O7 Cr, K2CrO4 Cr, CrO3 Cr, Cr2O3 Cr, MnO2 Mn, Mn2O7 Mn, FeCl3 Fe, FeCl2 Fe, Fe2O3 Fe, FeO Fe, H2SO4 S, H2SO3 S,
Na2SO4 S, SO2 S, SO3 S, H2S S, SF6 S, HNO3 N, HNO2 N, NaNO3 N, NO2 N, NO N, N2O N, N2O5 N, NH3 N, N2H4 N, HClO4 Cl, NaClO3 Cl,
NaClO Cl, Cl2O7 Cl, H3PO4 P, PCl3 P, PCl5 P, CO2 C, CO C, CH4 C, CaCO3 C, CH2O C, CCl4 C, H2O2 O, NaH H, TiO2 Ti, V2O5 V, CuCl2 Cu,
Cu2O Cu, PbO2 Pb, SnCl4 Sn, MnO4^- Mn, Cr2O7^2- Cr, CrO4^2- Cr, SO4^2- S, SO3^2- S, NO3^- N, NO2^- N, NH4^+ N, PO4^3- P,
CO3^2- C, ClO3^- Cl, ClO4^- Cl
"""

IONS = """
Li^+ Na^+ K^+ Cs^+ Ag^+ Cu^+ Mg^2+ Ca^2+ Sr^2+ Ba^2+ Fe^2+ Fe^3+ Cu^2+ Zn^2+ Ni^2+ Co^2+ Mn^2+ Cr^3+ Al^3+ Pb^2+ Sn^2+ Hg^2+
F^- Cl^- Br^- I^- O^2- S^2- Se^2- N^3- P^3- OH^- NH4^+ H3O^+ NO3^- NO2^- SO4^2- SO3^2- CO3^2- PO4^3- ClO^- ClO4^- HCO3^- CN^-
"""

ISOTOPES = """
H-3 He-3 He-4 Li-6 Li-7 Be-9 B-10 B-11 C-12 C-13 C-14 N-14 N-15 O-16 O-17 O-18 F-19 Ne-20 Ne-22 Na-23 Mg-24 Mg-25 Al-27 Si-28
Si-30 P-31 S-32 S-34 Cl-35 Cl-37 Ar-40 K-39 K-40 Ca-40 Ti-48 V-51 Cr-52 Mn-55 Fe-56 Co-60 Ni-58 Cu-63 Cu-65 Zn-64 As-75 Br-79
Sr-90 Ag-107 Cd-112 Sn-120 I-127 I-131 Cs-137 Ba-138 Hg-202 Pb-208 U-235 U-238
"""

EQUATIONS = """
2 H2 + O2 -> 2 H2O; N2 + 3 H2 -> 2 NH3; CH4 + 2 O2 -> CO2 + 2 H2O; C3H8 + 5 O2 -> 3 CO2 + 4 H2O; 2 C2H6 + 7 O2 -> 4 CO2 + 6 H2O;
C2H4 + 3 O2 -> 2 CO2 + 2 H2O; 2 C2H2 + 5 O2 -> 4 CO2 + 2 H2O; C6H12O6 + 6 O2 -> 6 CO2 + 6 H2O; 2 CH3OH + 3 O2 -> 2 CO2 + 4 H2O;
C2H5OH + 3 O2 -> 2 CO2 + 3 H2O; C5H12 + 8 O2 -> 5 CO2 + 6 H2O; 2 C4H10 + 13 O2 -> 8 CO2 + 10 H2O; 4 Fe + 3 O2 -> 2 Fe2O3;
4 Al + 3 O2 -> 2 Al2O3; 2 Mg + O2 -> 2 MgO; 3 Mg + N2 -> Mg3N2; 2 Na + Cl2 -> 2 NaCl; 2 K + Br2 -> 2 KBr; 2 Al + 3 Cl2 -> 2 AlCl3;
2 Fe + 3 Cl2 -> 2 FeCl3; P4 + 6 Cl2 -> 4 PCl3; P4 + 5 O2 -> P4O10; 2 Na + 2 H2O -> 2 NaOH + H2; Ca + 2 H2O -> Ca(OH)2 + H2;
Zn + 2 HCl -> ZnCl2 + H2; 2 Al + 6 HCl -> 2 AlCl3 + 3 H2; Fe2O3 + 3 CO -> 2 Fe + 3 CO2; Fe2O3 + 2 Al -> Al2O3 + 2 Fe;
4 NH3 + 5 O2 -> 4 NO + 6 H2O; 2 SO2 + O2 -> 2 SO3; 2 H2S + 3 O2 -> 2 SO2 + 2 H2O; CS2 + 3 O2 -> CO2 + 2 SO2;
4 FeS2 + 11 O2 -> 2 Fe2O3 + 8 SO2; 2 KClO3 -> 2 KCl + 3 O2; 2 H2O2 -> 2 H2O + O2; 2 NaHCO3 -> Na2CO3 + H2O + CO2;
2 Al(OH)3 -> Al2O3 + 3 H2O; 2 Pb(NO3)2 -> 2 PbO + 4 NO2 + O2; CaCO3 + 2 HCl -> CaCl2 + H2O + CO2; Ca(OH)2 + 2 HCl -> CaCl2 + 2 H2O;
H2SO4 + 2 NaOH -> Na2SO4 + 2 H2O; H3PO4 + 3 NaOH -> Na3PO4 + 3 H2O; 2 AgNO3 + CaCl2 -> 2 AgCl + Ca(NO3)2;
FeCl3 + 3 NaOH -> Fe(OH)3 + 3 NaCl; MgCl2 + 2 NaOH -> Mg(OH)2 + 2 NaCl; Mg3N2 + 6 H2O -> 3 Mg(OH)2 + 2 NH3;
Cu + 2 AgNO3 -> Cu(NO3)2 + 2 Ag; MnO2 + 4 HCl -> MnCl2 + Cl2 + 2 H2O; 3 NO2 + H2O -> 2 HNO3 + NO; SiO2 + 2 C -> Si + 2 CO;
3 Ca(OH)2 + 2 H3PO4 -> Ca3(PO4)2 + 6 H2O; Al2(SO4)3 + 6 NaOH -> 2 Al(OH)3 + 3 Na2SO4
""".replace("\n", " ").strip().split("; ")

KINDS = {
    "molar mass": molar_mass,
    "moles from mass": moles_from_mass,
    "mass percent": mass_percent,
    "atoms": atoms_in_formula,
    "oxidation state": oxidation_state,
    "electrons": electrons_in_ion,
    "neutrons": neutrons_in_isotope,
    "balancing": balancing,
    "stoichiometry": stoichiometry,
    "pH": ph,
}

if __name__ == "__main__":
    main()
