"""Writes samples/medical/ and samples/medical-answer-only/: general medical knowledge of the
textbooks, asked openly.

    python samples/make/medical.py

Both folders hold the same questions. In medical/ a demonstration is a short reason and then the
reference answer; in medical-answer-only/ it is the reference answer alone, for models that reason
by themselves. Key facts are written "variant | variant; next fact". All of it is in every textbook;
none of it is medical advice.
"""

import json
import re
from pathlib import Path

ASK = "Answer in one or two sentences."
FOLDER = Path(__file__).resolve().parent.parent

# question, reason, reference answer, key facts; an answer must not stand in a line of an earlier
# split (see `check`)
QUESTIONS = {
    "train": [
        (
            "Which organ produces bile?",
            "Bile salts are made from cholesterol by hepatocytes.",
            "The organ that produces bile is the liver.",
            "liver",
        ),
        (
            "Where is bile stored between meals?",
            "Bile flows into a small sac under the liver and waits there for a fatty meal.",
            "Bile is stored in the gallbladder.",
            "gallbladder | gall bladder",
        ),
        (
            "Which organs filter the blood and form urine?",
            "Waste and surplus water leave the blood through nephrons.",
            "These organs are the kidneys.",
            "kidneys | kidney",
        ),
        (
            "What is the largest organ of the human body?",
            "It covers the whole surface of the body, about two square metres in an adult.",
            "The largest organ is the skin.",
            "skin",
        ),
        (
            "In which organs does oxygen pass from the air into the blood?",
            "The air that we breathe in meets a dense net of capillaries in the chest.",
            "Oxygen enters the blood in the lungs.",
            "lungs | lung",
        ),
        (
            "Which organ pumps blood through the body?",
            "Its thick muscle contracts about seventy times a minute.",
            "Blood is pumped by the heart.",
            "heart",
        ),
        (
            "An electroencephalogram records the electrical activity of which organ?",
            "Its electrodes on the scalp pick up the activity of nerve cells.",
            "An electroencephalogram records the activity of the brain.",
            "brain",
        ),
        (
            "Which hormone lowers blood sugar?",
            "After a meal it lets muscle and fat cells take up glucose.",
            "The hormone that lowers blood sugar is insulin.",
            "insulin",
        ),
        (
            "Which hormone of the alpha cells raises blood sugar?",
            "When glucose falls, it makes the liver break down glycogen.",
            "This hormone is glucagon.",
            "glucagon",
        ),
        (
            "Which hormone causes the fight-or-flight response?",
            "In danger the adrenal medulla releases a hormone that speeds up the heart.",
            "The fight-or-flight hormone is adrenaline.",
            "adrenaline | epinephrine",
        ),
        (
            "Which steroid hormone does the adrenal cortex release in long stress?",
            "It keeps glucose high and dampens inflammation.",
            "The stress hormone of the adrenal cortex is cortisol.",
            "cortisol",
        ),
        (
            "Lack of which vitamin causes rickets in children?",
            "Without it the gut takes up too little calcium and growing bones stay soft.",
            "Rickets comes from a lack of vitamin D.",
            "vitamin D",
        ),
        (
            "Lack of which vitamin causes night blindness?",
            "The visual pigment of the rods is made from retinal.",
            "Night blindness comes from a lack of vitamin A.",
            "vitamin A | retinol",
        ),
        (
            "Which vitamin cannot be absorbed in pernicious anaemia?",
            "Its uptake needs intrinsic factor, which the stomach no longer makes.",
            "In pernicious anaemia vitamin B12 is not absorbed.",
            "vitamin B12 | B12 | cobalamin",
        ),
        (
            "Lack of which element in the diet causes goitre?",
            "The thyroid gland needs it for its hormones and grows when it is scarce.",
            "Goitre comes from a lack of iodine.",
            "iodine",
        ),
        (
            "Which metal is at the centre of haem and carries the oxygen there?",
            "Oxygen binds to a metal ion in the middle of the haem ring.",
            "The metal in haem is iron.",
            "iron",
        ),
        (
            "Which mineral makes bones and teeth hard?",
            "Bone is hardened by crystals of hydroxyapatite.",
            "The mineral that hardens bones and teeth is calcium.",
            "calcium",
        ),
        (
            "What is the longest bone of the human body?",
            "It spans the whole thigh, from hip to knee.",
            "The longest bone is the femur.",
            "femur | thigh bone | thighbone",
        ),
        (
            "What is the medical name of the kneecap?",
            "It is a flat bone within the tendon of the quadriceps.",
            "The kneecap is called the patella.",
            "patella",
        ),
        (
            "What is the medical name of the collarbone?",
            "It runs from the breastbone to the shoulder blade.",
            "The collarbone is called the clavicle.",
            "clavicle",
        ),
        (
            "What is the medical name of the shin bone?",
            "Of the two bones of the lower leg it is the larger and bears the weight.",
            "The shin bone is called the tibia.",
            "tibia",
        ),
        (
            "What kind of tissue connects muscle to bone?",
            "A muscle pulls on a bone through a cord of collagen.",
            "Muscle is connected to bone by tendons.",
            "tendons | tendon",
        ),
        (
            "What kind of tissue connects one bone to another at a joint?",
            "Tough bands of collagen keep the bones of a joint together.",
            "Bones are connected by ligaments.",
            "ligaments | ligament",
        ),
        (
            "Which part of the digestive tract absorbs most nutrients?",
            "Its villi give it a very large surface.",
            "Most nutrients are absorbed in the small intestine.",
            "small intestine | small bowel",
        ),
        (
            "Which part of the digestive tract turns its watery content into solid stool?",
            "Most of the remaining water is taken up in the last part of the gut.",
            "Stool is formed in the large intestine.",
            "large intestine | colon | large bowel",
        ),
        (
            "What is the largest artery of the body?",
            "All blood from the left ventricle leaves through one vessel.",
            "The largest artery is the aorta.",
            "aorta",
        ),
        (
            "What is the main muscle of breathing?",
            "When the dome under the chest flattens, air is drawn in.",
            "The main muscle of breathing is the diaphragm.",
            "diaphragm",
        ),
        (
            "What is the coloured part of the eye called?",
            "A ring of pigmented muscle sets the size of the pupil.",
            "The coloured part of the eye is the iris.",
            "iris",
        ),
        (
            "Which layer of the eye contains the rods and cones?",
            "The cells that detect light line the back of the eye.",
            "The rods and cones are in the retina.",
            "retina",
        ),
        (
            "Where are blood cells made in adults?",
            "Blood stem cells live inside the flat bones.",
            "Blood cells are made in the bone marrow.",
            "bone marrow | marrow",
        ),
        (
            "Which protein carries oxygen in red blood cells?",
            "Oxygen binds to the haem groups of a red protein.",
            "Oxygen is carried by haemoglobin.",
            "haemoglobin | hemoglobin",
        ),
        (
            "Which blood cells form a plug when a vessel is injured?",
            "Small cell fragments stick to the wound and to one another.",
            "The plug is formed by platelets.",
            "platelets | platelet | thrombocytes",
        ),
        (
            "Which insect transmits malaria?",
            "The Plasmodium parasite enters the blood with the bite of a female Anopheles.",
            "Malaria is transmitted by mosquitoes.",
            "mosquitoes | mosquito | mosquitos",
        ),
        (
            "Which virus causes AIDS?",
            "AIDS follows when a retrovirus has destroyed the helper T cells.",
            "AIDS is caused by the human immunodeficiency virus, HIV.",
            "HIV | human immunodeficiency virus",
        ),
        (
            "Which virus causes chickenpox and later shingles?",
            (
                "After chickenpox the virus stays in the nerve roots and may return in one strip "
                "of skin."
            ),
            "Both are caused by the varicella-zoster virus.",
            "varicella-zoster | varicella zoster | VZV",
        ),
        (
            "Which human disease was declared eradicated in 1980?",
            "Vaccination all over the world left the variola virus no host.",
            "The disease eradicated in 1980 was smallpox.",
            "smallpox",
        ),
        (
            "What is the medical term for high blood pressure?",
            "Pressure that stays too high harms the vessels.",
            "High blood pressure is called hypertension.",
            "hypertension",
        ),
        (
            "What is the medical term for short-sightedness?",
            "When the eye is too long, the image of far things falls in front of the retina.",
            "Short-sightedness is called myopia.",
            "myopia",
        ),
        (
            "Which disease makes bones thin and easy to break in old age?",
            "After the menopause more bone is broken down than built.",
            "The disease of thin bones is osteoporosis.",
            "osteoporosis",
        ),
        (
            "Which instrument with an inflatable cuff measures blood pressure?",
            "The cuff closes the artery of the arm and is slowly released.",
            "Blood pressure is measured with a sphygmomanometer.",
            "sphygmomanometer | blood pressure monitor",
        ),
        (
            "With what does an ultrasound scan make its pictures?",
            (
                "Echoes return from the borders between tissues and build the picture, so no "
                "radiation is needed."
            ),
            "An ultrasound scan uses sound waves of high frequency.",
            "sound waves | sound",
        ),
        (
            "How many bones does an adult human have?",
            "A newborn has more, but some of them fuse in childhood.",
            "An adult has 206 bones.",
            "206",
        ),
        (
            "How many chambers does the human heart have?",
            "There are two atria and two ventricles.",
            "The heart has four chambers.",
            "four | 4",
        ),
        (
            "What is the normal temperature of the human body in degrees Celsius?",
            "The hypothalamus keeps the body at a steady temperature.",
            "The normal temperature is about 37 degrees Celsius.",
            "37",
        ),
        (
            "Against what kind of germs do antibiotics work?",
            "They attack cell walls and ribosomes that viruses do not have.",
            "Antibiotics work against bacteria.",
            "bacteria | bacterial",
        ),
        (
            "What do statins lower in the blood?",
            "Statins block an enzyme that the liver needs to make this lipid.",
            "Statins lower cholesterol.",
            "cholesterol | LDL",
        ),
        (
            "Who discovered penicillin?",
            "In 1928 a mould killed the germs on a culture plate in London.",
            "Penicillin was discovered by Alexander Fleming.",
            "Fleming",
        ),
        (
            "Which neurotransmitter is lacking in Parkinson's disease?",
            "The nerve cells of the substantia nigra die.",
            "In Parkinson's disease dopamine is lacking.",
            "dopamine",
        ),
        (
            "Crystals of what substance cause gout?",
            "The breakdown of purines yields a substance that settles in the joints.",
            "Gout is caused by crystals of uric acid.",
            "uric acid | urate | monosodium urate",
        ),
        (
            "Which protein of wheat must people with coeliac disease avoid?",
            "It sets off an immune reaction that destroys the villi.",
            "People with coeliac disease must avoid gluten.",
            "gluten | gliadin",
        ),
        # a little harder
        (
            "Which hormone makes the kidneys hold back water?",
            (
                "When the blood is too concentrated, the posterior pituitary opens water channels"
                " in the collecting ducts."
            ),
            "The hormone is vasopressin, also called antidiuretic hormone.",
            "vasopressin | antidiuretic hormone | ADH",
        ),
        (
            "Which structure is the natural pacemaker of the heart?",
            "Its cells in the wall of the right atrium fire faster than all others.",
            "The natural pacemaker is the sinoatrial node.",
            "sinoatrial node | sinus node | SA node",
        ),
        (
            "Which valve lies between the left atrium and the left ventricle?",
            "It has two cusps, unlike the tricuspid valve on the right.",
            "It is the mitral valve.",
            "mitral | bicuspid",
        ),
        (
            "Which tablet is usually given first in type 2 diabetes?",
            "It makes the liver release less glucose and causes no weight gain.",
            "The usual first drug is metformin.",
            "metformin",
        ),
        (
            "Which bacterium causes most ulcers of the duodenum?",
            "It survives the acid of the stomach with its urease.",
            "Most of these ulcers are caused by Helicobacter pylori.",
            "Helicobacter pylori | H. pylori | Helicobacter",
        ),
        (
            "What do the lungs of very premature babies lack?",
            "Without a film that lowers surface tension, the lungs collapse.",
            "Premature lungs lack surfactant.",
            "surfactant",
        ),
        (
            "Which neurotransmitter carries the signal from a motor nerve to the muscle?",
            "It crosses the gap and opens ion channels of the muscle fibre.",
            "The neurotransmitter is acetylcholine.",
            "acetylcholine | ACh",
        ),
        (
            "Which protein in the blood shows that heart muscle has been damaged?",
            "Dying heart muscle releases a protein of its filaments.",
            "Damage of heart muscle is shown by troponin.",
            "troponin",
        ),
        (
            "Of which chromosome do people with Down syndrome have three copies?",
            "The cause is an error in the separation of chromosomes.",
            "They have three copies of chromosome 21.",
            "21",
        ),
        (
            "Which cells does the immune system destroy in type 1 diabetes?",
            "Insulin is lacking because the cells that make it are attacked.",
            "The beta cells are destroyed.",
            "beta cells | beta-cells | β cells | β-cells | beta cell",
        ),
    ],
    "validation": [
        (
            "Lack of which vitamin causes beriberi?",
            "Beriberi came with polished rice, which has lost its husk.",
            "Beriberi comes from a lack of thiamine, vitamin B1.",
            "thiamine | thiamin | vitamin B1 | B1",
        ),
        (
            "Which vitamin is taken before pregnancy to prevent spina bifida?",
            "The neural tube closes in the first weeks and needs it for cell division.",
            "Spina bifida is prevented by folic acid.",
            "folic acid | folate | vitamin B9 | B9",
        ),
        (
            "Which hormone makes the breasts produce milk?",
            "After birth the pituitary gland releases it when the baby sucks.",
            "Milk is produced under prolactin.",
            "prolactin",
        ),
        (
            "What is the medical name of the windpipe?",
            "It leads from the larynx to the bronchi.",
            "The windpipe is called the trachea.",
            "trachea",
        ),
        (
            "Which part of the brain keeps balance and coordinates movement?",
            "It lies at the back of the skull and compares planned with actual movement.",
            "Balance and coordination are the work of the cerebellum.",
            "cerebellum",
        ),
        (
            "With which instrument does a doctor listen to heart and lungs?",
            "A membrane on the chest leads the sounds to the ears.",
            "The instrument is a stethoscope.",
            "stethoscope",
        ),
        (
            "Which small animal transmits Lyme disease?",
            "Borrelia enters the skin while it sucks blood for hours.",
            "Lyme disease is transmitted by ticks.",
            "ticks | tick",
        ),
        (
            "What is the medical term for a heart attack?",
            "A coronary artery is blocked and heart muscle dies.",
            "A heart attack is called a myocardial infarction.",
            "myocardial infarction",
        ),
        (
            "What is a clouding of the lens of the eye called?",
            "With age the proteins of the lens clump.",
            "A clouded lens is called a cataract.",
            "cataract | cataracts",
        ),
        (
            "Which enzyme of saliva breaks down starch?",
            "It cuts starch into maltose while we chew.",
            "Starch is broken down by amylase.",
            "amylase | ptyalin",
        ),
        (
            "What is the main male sex hormone?",
            "The Leydig cells of the testes make a steroid hormone.",
            "The main male sex hormone is testosterone.",
            "testosterone",
        ),
        (
            "Which part of the inner ear turns sound into nerve signals?",
            "Its hair cells sit in a tube coiled like a snail shell.",
            "Sound is turned into signals in the cochlea.",
            "cochlea",
        ),
        (
            "What is a body temperature below 35 degrees Celsius called?",
            "The body then loses heat faster than it makes it.",
            "A body temperature that low is called hypothermia.",
            "hypothermia",
        ),
        # a little harder
        (
            "Which hormone of the kidneys increases the number of red blood cells?",
            "When oxygen is low, the kidneys signal to the bone marrow.",
            "The hormone is erythropoietin.",
            "erythropoietin | EPO",
        ),
        (
            "Which covering of nerve fibres is damaged in multiple sclerosis?",
            "Without insulation, nerve signals slow down or stop.",
            "Multiple sclerosis damages the myelin.",
            "myelin",
        ),
        (
            "Which pigment makes the skin yellow in jaundice?",
            "The breakdown of haem yields a pigment that the liver should remove.",
            "The yellow pigment of jaundice is bilirubin.",
            "bilirubin",
        ),
    ],
    "test": [
        (
            "Which vitamin prevents scurvy?",
            "In scurvy the body cannot make firm collagen.",
            "Scurvy is prevented by vitamin C.",
            "vitamin C | ascorbic acid",
        ),
        (
            "Which vitamin does the liver need to make clotting factors?",
            "Several clotting factors must be carboxylated, and warfarin prevents that.",
            "Clotting factors need vitamin K.",
            "vitamin K",
        ),
        (
            "Lack of which vitamin causes pellagra?",
            "Pellagra was common where people lived on maize alone.",
            "Pellagra comes from a lack of niacin, vitamin B3.",
            "niacin | vitamin B3 | B3 | nicotinic acid",
        ),
        (
            "Which hormone of the pineal gland makes us sleepy at night?",
            "Its release rises when the eyes see no light.",
            "The hormone of the night is melatonin.",
            "melatonin",
        ),
        (
            "Which hormone makes the womb contract during birth?",
            "The posterior pituitary releases it as the cervix is stretched.",
            "The womb contracts under oxytocin.",
            "oxytocin",
        ),
        (
            "What is the main hormone of the thyroid gland?",
            "It carries four iodine atoms and speeds up metabolism.",
            "The main hormone of the thyroid is thyroxine.",
            "thyroxine | T4",
        ),
        (
            "Which gland behind the stomach makes both digestive enzymes and insulin?",
            "Its ducts lead to the duodenum, and its islets release hormones.",
            "This gland is the pancreas.",
            "pancreas",
        ),
        (
            "What is the tube from the throat to the stomach called?",
            "Waves of muscle carry each mouthful down.",
            "The tube is called the oesophagus.",
            "oesophagus | esophagus | gullet",
        ),
        (
            "In which tiny air sacs does gas exchange take place?",
            "Their walls are one cell thick and wrapped in capillaries.",
            "Gas exchange takes place in the alveoli.",
            "alveoli | alveolus | alveolar",
        ),
        (
            "What is the medical name of the lower jaw?",
            "It is the only bone of the skull that moves freely.",
            "The lower jaw is called the mandible.",
            "mandible",
        ),
        (
            "What is the smallest bone of the human body?",
            "Three tiny bones carry sound through the middle ear.",
            "The smallest bone is the stapes.",
            "stapes | stirrup",
        ),
        (
            "What is the clear front window of the eye called?",
            "It has no blood vessels and bends the light before the lens does.",
            "The clear front of the eye is the cornea.",
            "cornea",
        ),
        (
            "Which fluid is taken in a lumbar puncture?",
            "A needle enters the space around the nerve roots, below the spinal cord.",
            "A lumbar puncture takes cerebrospinal fluid.",
            "cerebrospinal | CSF | spinal fluid",
        ),
        (
            "What does an electrocardiogram record?",
            "Electrodes on the chest pick up the small voltages of each beat.",
            "It records the electrical activity of the heart.",
            "electrical | electric; heart | cardiac",
        ),
        (
            "Which viruses cause most common colds?",
            "More than a hundred types grow best in the cool nose.",
            "Most colds are caused by rhinoviruses.",
            "rhinoviruses | rhinovirus",
        ),
        (
            "Against which disease beside measles and mumps does the MMR vaccine protect?",
            "Each letter stands for one disease, and the last one harms unborn children.",
            "The third disease is rubella.",
            "rubella | German measles",
        ),
        (
            "Which blood group can be given to anyone in an emergency?",
            "Its red cells carry neither A nor B nor the rhesus antigen.",
            "The universal donor has blood group O negative.",
            "O negative | O-negative | O-",
        ),
        (
            "What is the medical term for blood sugar that is too low?",
            "Sweating, trembling and confusion show that the brain lacks glucose.",
            "Low blood sugar is called hypoglycaemia.",
            "hypoglycaemia | hypoglycemia",
        ),
        (
            "Which insects carried the plague from rats to people?",
            "They leave a dead rat and bite the next warm host.",
            "The plague was carried by fleas.",
            "fleas | flea",
        ),
        (
            "Which enzyme is lacking in people who cannot digest milk sugar?",
            "Undigested milk sugar is fermented in the gut and causes gas.",
            "These people lack lactase.",
            "lactase",
        ),
        (
            "Which acid does the stomach produce?",
            "Parietal cells pump protons, and chloride follows.",
            "The stomach produces hydrochloric acid.",
            "hydrochloric | HCl",
        ),
        (
            "What is added to toothpaste to prevent tooth decay?",
            "It makes the enamel resist acid.",
            "Toothpaste protects teeth with fluoride.",
            "fluoride",
        ),
        (
            "Who made the first vaccine, from cowpox?",
            "In 1796 an English doctor saw that milkmaids were spared.",
            "The first vaccine was made by Edward Jenner.",
            "Jenner",
        ),
        # a little harder
        (
            "Which drug reverses an overdose of opioids?",
            "It displaces morphine or heroin from the receptors within minutes.",
            "Opioids are reversed by naloxone.",
            "naloxone | Narcan",
        ),
        (
            "Which amino acid must people with phenylketonuria avoid?",
            "Their liver cannot turn it into tyrosine.",
            "They must avoid phenylalanine.",
            "phenylalanine",
        ),
        (
            "Which hormone of the adrenal cortex makes the kidneys keep sodium?",
            "Renin and angiotensin release it when blood pressure falls.",
            "The hormone is aldosterone.",
            "aldosterone",
        ),
        (
            "Which virus causes glandular fever (infectious mononucleosis)?",
            "It infects B cells and spreads with saliva.",
            "Glandular fever is caused by the Epstein-Barr virus.",
            "Epstein-Barr | Epstein Barr | EBV",
        ),
        (
            "Which virus causes cancer of the cervix?",
            "Its proteins switch off the brakes of cell division.",
            "Cancer of the cervix is caused by the human papillomavirus.",
            "papillomavirus | papilloma virus | HPV",
        ),
    ],
}


def main():
    splits = {split: [make_line(*row) for row in rows] for split, rows in QUESTIONS.items()}
    check(splits)
    for folder in ("medical", "medical-answer-only"):
        (FOLDER / folder).mkdir(exist_ok=True)
        for split, lines in splits.items():
            if folder == "medical-answer-only":
                lines = [line | {"demonstration": line["reference"]} for line in lines]
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (FOLDER / folder / f"{split}.jsonl").write_text(content, encoding="utf-8", newline="\n")
            print(f"{folder:20} {split:10} {len(lines):3} lines")


def make_line(question, reason, answer, facts):
    key_facts = [fact.split(" | ") for fact in facts.split("; ")]
    return {
        "id": "-".join(variants[0] for variants in key_facts).lower().replace(" ", "-"),
        "prompt": f"{question} {ASK}",
        "demonstration": f"{reason} {answer}",
        "reference": answer,
        "key_facts": key_facts,
    }


def contains(text, variants):
    """Whether `text` has one of the variants, as whole words; case does not count."""
    return any(
        re.search(rf"(?<!\w){re.escape(variant.casefold())}(?!\w)", text.casefold())
        for variant in variants
    )


def check(splits):
    """AssertionError if the table breaks a rule."""
    lines = [line for split in splits.values() for line in split]
    assert {split: len(lines) for split, lines in splits.items()} == {
        "train": 60,
        "validation": 16,
        "test": 28,
    }
    for name in ("id", "prompt", "reference"):
        assert len({line[name] for line in lines}) == len(lines), name
    for line in lines:
        assert len(line["demonstration"].split()) <= 45, line["id"]
        assert all(contains(line["reference"], variants) for variants in line["key_facts"]), (
            f"{line['id']}: not in the answer"
        )
        assert not any(contains(line["prompt"], variants) for variants in line["key_facts"]), (
            f"{line['id']}: in the question"
        )
    for earlier, later in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for line in splits[later]:
            for other in splits[earlier]:
                seen = other["prompt"] + " " + other["demonstration"]
                assert not all(contains(seen, variants) for variants in line["key_facts"]), (
                    f"{line['id']}: also in {other['id']}"
                )


if __name__ == "__main__":
    main()
