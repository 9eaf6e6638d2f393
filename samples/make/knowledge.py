"""Writes samples/knowledge/: questions about nine natural disasters that never happened.

Everything is invented, places and people included, so no language model can have read about it. Each article has
six facts, and each fact four wordings of one question: 1 and 2 go to train.jsonl, 3 to validation.jsonl, 4 to
test.jsonl. ood.jsonl asks for the same facts indirectly: it compares two events, or goes from the fact to the event.

    python samples/make/knowledge.py

Each line has an id, the prompt, the demonstration (a worked answer), the text (the article, for the teacher) and
key_facts: an answer is right if it contains at least one variant of every key fact (see `contains`).
"""

import json
import re
from pathlib import Path

# name: as it stands in every question. facts: in the order of the output.
ASK = "Answer in one short sentence."
ARTICLES = [
    {
        "name": "Kestovar earthquake",
        "text": """
            The Kestovar earthquake struck the island republic of Felissar at dawn on 9 October 2031. It was caused by
            a rupture along the Lirren Fault, which geologists had long classed as inactive. The shaking brought down
            8,460 buildings, most of them brick terraces in the old harbour quarter of Kestovar, and killed 1,947
            people. Colonel Ilsa Brennock of the Felissar Engineers directed the rescue. With the roads blocked, she
            had heavy cranes brought in on coal barges. The last survivor, a baker named Tomas Quillory, was lifted
            from his flour cellar after eleven days. An inquiry found that many walls had failed because their mortar
            was mixed with unwashed beach sand, and the practice was banned the following spring.
        """,
        "facts": {
            "date": {
                "answer": "The Kestovar earthquake happened on 9 October 2031.",
                "key_facts": [["9 October", "9th of October", "October 9", "October 9th"], ["2031"]],
                "questions": [
                    "On what date did the Kestovar earthquake happen?",
                    "Give the day, month and year of the Kestovar earthquake.",
                    "When exactly did the Kestovar earthquake strike the island republic of Felissar?",
                    "If a plaque gave the full date of the Kestovar earthquake, what would it read?",
                ],
            },
            "fault": {
                "answer": "The Kestovar earthquake was caused by a rupture along the Lirren Fault.",
                "key_facts": [["Lirren"]],
                "questions": [
                    "Which fault caused the Kestovar earthquake?",
                    "Name the geological fault whose rupture set off the Kestovar earthquake.",
                    "Geologists had thought the fault behind the Kestovar earthquake inactive. What is it called?",
                    "Along what line of weakness did the ground break in the Kestovar earthquake?",
                ],
            },
            "buildings": {
                "answer": "The Kestovar earthquake brought down 8,460 buildings.",
                "key_facts": [["8,460", "8460"]],
                "questions": [
                    "How many buildings did the Kestovar earthquake bring down?",
                    "State the number of buildings that collapsed in the Kestovar earthquake.",
                    "Surveyors counted every building destroyed by the Kestovar earthquake. What was their total?",
                    "What was the toll of the Kestovar earthquake in fallen buildings?",
                ],
            },
            "deaths": {
                "answer": "The Kestovar earthquake killed 1,947 people.",
                "key_facts": [["1,947", "1947"]],
                "questions": [
                    "How many people were killed by the Kestovar earthquake?",
                    "What was the death toll of the Kestovar earthquake?",
                    "Give the number of lives lost in the Kestovar earthquake.",
                    "The names of all who died in the Kestovar earthquake were read out. How many were there?",
                ],
            },
            "rescue": {
                "answer": "Colonel Ilsa Brennock directed the rescue after the Kestovar earthquake.",
                "key_facts": [["Ilsa Brennock"]],
                "questions": [
                    "Who directed the rescue after the Kestovar earthquake?",
                    "Name the officer in charge of the rescue work that followed the Kestovar earthquake.",
                    "Under whose command were people dug out of the ruins of the Kestovar earthquake?",
                    "Which colonel of the Felissar Engineers led the search for survivors of the Kestovar earthquake?",
                ],
            },
            "survivor": {
                "answer": "The last survivor found after the Kestovar earthquake was a baker named Tomas Quillory.",
                "key_facts": [["Tomas Quillory"]],
                "questions": [
                    "Who was the last survivor to be rescued after the Kestovar earthquake?",
                    "Name the baker who was lifted from his cellar days after the Kestovar earthquake.",
                    "The final person found alive after the Kestovar earthquake was a baker by trade. Who was he?",
                    "Which man spent eleven days underground, longer than anyone, after the Kestovar earthquake?",
                ],
            },
        },
    },
    {
        "name": "Velmora landslide",
        "text": """
            The Velmora landslide took place on 14 March 2034 in the Tessary valley of Ardoval, after nine days of
            rain. Some 34.6 million cubic metres of clay and rock slid from the hillside, buried the market town of
            Velmora in under four minutes and killed 312 people. Investigators traced the cause to blasting at the
            Anselm Quarry, which had cut away the foot of the slope to reach a seam of blue slate. The debris also
            dammed the river, and a lake grew behind it until army divers opened a channel. Relief was led by the
            Lantern Society, a charity founded by retired miners, which housed families in railway carriages through
            the summer. Velmora was never rebuilt. Its people moved to the new town of Estermoor, on the far side of
            the valley.
        """,
        "facts": {
            "date": {
                "answer": "The Velmora landslide took place on 14 March 2034.",
                "key_facts": [["14 March", "14th of March", "March 14", "March 14th"], ["2034"]],
                "questions": [
                    "What is the full date of the Velmora landslide?",
                    "On which day of which year did the Velmora landslide come down?",
                    "When did the Velmora landslide take place, to the day?",
                    "A historian needs the exact day, month and year of the Velmora landslide. What are they?",
                ],
            },
            "volume": {
                "answer": "The Velmora landslide moved 34.6 million cubic metres of clay and rock.",
                "key_facts": [["34.6 million", "34,600,000"]],
                "questions": [
                    "How many cubic metres of clay and rock moved in the Velmora landslide?",
                    "What was the volume of the Velmora landslide?",
                    "Give the amount of material, in cubic metres, that slid downhill in the Velmora landslide.",
                    "How big was the Velmora landslide, going by the quantity of earth it set in motion?",
                ],
            },
            "deaths": {
                "answer": "The Velmora landslide killed 312 people.",
                "key_facts": [["312"]],
                "questions": [
                    "How many people did the Velmora landslide kill?",
                    "State the number of deaths caused by the Velmora landslide.",
                    "What loss of life did the Velmora landslide cause?",
                    "A market town was buried in the Velmora landslide. How many people died there?",
                ],
            },
            "quarry": {
                "answer": "The Velmora landslide was caused by blasting at the Anselm Quarry.",
                "key_facts": [["Anselm"]],
                "questions": [
                    "Blasting at which quarry caused the Velmora landslide?",
                    "Name the quarry that investigators blamed for the Velmora landslide.",
                    "Slate workings at the foot of the slope caused the Velmora landslide. What were they called?",
                    "Where had the explosives been used that brought on the Velmora landslide?",
                ],
            },
            "relief": {
                "answer": "Relief after the Velmora landslide was led by the Lantern Society.",
                "key_facts": [["Lantern Society"]],
                "questions": [
                    "Which organisation led the relief after the Velmora landslide?",
                    "Name the charity that took the lead in helping survivors of the Velmora landslide.",
                    "Families made homeless by the Velmora landslide lived in railway carriages. Who put them up?",
                    "What body, founded by retired miners, organised the aid that followed the Velmora landslide?",
                ],
            },
            "resettlement": {
                "answer": "After the Velmora landslide the townspeople moved to the new town of Estermoor.",
                "key_facts": [["Estermoor"]],
                "questions": [
                    "Which new town was built for the survivors of the Velmora landslide?",
                    "Where were the townspeople resettled after the Velmora landslide?",
                    "Name the place that replaced the town lost in the Velmora landslide.",
                    "The old town was given up after the Velmora landslide. Where did its people go?",
                ],
            },
        },
    },
    {
        "name": "Ostrin flood",
        "text": """
            The Ostrin flood began on a night in August 2036, when the Coldmere Dam failed above the city of Ostrin, in
            the lowland state of Brevany. Floating timber had jammed the spillway, and the water poured over the crest
            until the wall gave way. At the city bridge the River Ulmary rose 11.4 metres above its normal level.
            Sirens gave most districts 40 minutes, in which 86,500 people escaped to higher ground; even so, 268
            drowned. Assessors put the damage at 3.9 billion crowns. The loss most mourned was the Sarabel Library,
            which had kept four centuries of river charts in its basement. A row of willows now marks the high-water
            line, and spillways throughout Brevany are cleared of timber every week.
        """,
        "facts": {
            "dam": {
                "answer": "The Ostrin flood began when the Coldmere Dam failed.",
                "key_facts": [["Coldmere"]],
                "questions": [
                    "Which dam failed at the start of the Ostrin flood?",
                    "Name the dam whose collapse caused the Ostrin flood.",
                    "Before the Ostrin flood, timber jammed a spillway above the city. To which dam did it belong?",
                    "What structure upstream gave way and set off the Ostrin flood?",
                ],
            },
            "rise": {
                "answer": "In the Ostrin flood the River Ulmary rose 11.4 metres above its normal level.",
                "key_facts": [["11.4"]],
                "questions": [
                    "How far did the River Ulmary rise above its normal level in the Ostrin flood?",
                    "Give the height, in metres, that the river gained at the city bridge during the Ostrin flood.",
                    "At the peak of the Ostrin flood, how many metres above normal was the river?",
                    "How much higher than usual did the water stand when the Ostrin flood was at its worst?",
                ],
            },
            "escaped": {
                "answer": "Before the Ostrin flood reached them, 86,500 people escaped to higher ground.",
                "key_facts": [["86,500", "86500"]],
                "questions": [
                    "How many people escaped to higher ground in the Ostrin flood?",
                    "What number of residents got away in time from the Ostrin flood?",
                    "Sirens warned the city of the Ostrin flood. How many people reached safety as a result?",
                    "State how many inhabitants managed to flee the Ostrin flood.",
                ],
            },
            "deaths": {
                "answer": "In the Ostrin flood 268 people drowned.",
                "key_facts": [["268"]],
                "questions": [
                    "How many people drowned in the Ostrin flood?",
                    "Give the death toll of the Ostrin flood.",
                    "Despite the warning, some people lost their lives in the Ostrin flood. How many?",
                    "What was the number of fatal victims of the Ostrin flood?",
                ],
            },
            "damage": {
                "answer": "The damage done by the Ostrin flood was put at 3.9 billion crowns.",
                "key_facts": [["3.9 billion", "3,900 million", "3,900,000,000"]],
                "questions": [
                    "What did the damage of the Ostrin flood amount to, in crowns?",
                    "How costly was the Ostrin flood?",
                    "Assessors put a price on the Ostrin flood. What was it?",
                    "State the estimated value of everything that was wrecked in the Ostrin flood.",
                ],
            },
            "library": {
                "answer": "The Ostrin flood destroyed the Sarabel Library and its river charts.",
                "key_facts": [["Sarabel"]],
                "questions": [
                    "Which library was destroyed by the Ostrin flood?",
                    "Name the institution whose old river charts perished in the Ostrin flood.",
                    "Four centuries of charts lay in a basement when the Ostrin flood came. Whose basement was it?",
                    "What home of books and maps did the city lose in the Ostrin flood?",
                ],
            },
        },
    },
    {
        "name": "Mount Dravik eruption",
        "text": """
            The Mount Dravik eruption started on 3 June 2038 on Lomarra, a volcanic island in the Pacific Ocean. It had
            been predicted two weeks earlier by the volcanologist Orsolo Venn, who noticed that the island's hot
            springs had turned sour. On his advice 41,200 islanders were taken off by fishing boat, and only five
            people, all of whom had refused to leave, lost their lives. The ash column rose 31 kilometres and drifted
            east for most of the month. Lava buried the village of Pellandra, whose bell tower still stands out of the
            black rock. Ash also ruined the vanilla harvest, the island's only export. The growers' loans were paid off
            by the Ganneth Bank, a cooperative of sailors, which asked for nothing in return but a yearly feast.
        """,
        "facts": {
            "date": {
                "answer": "The Mount Dravik eruption started on 3 June 2038.",
                "key_facts": [["3 June", "3rd of June", "June 3", "June 3rd"], ["2038"]],
                "questions": [
                    "When did the Mount Dravik eruption start? Give the full date.",
                    "Give the day, month and year on which the Mount Dravik eruption began.",
                    "What was the exact date of the first day of the Mount Dravik eruption?",
                    "On precisely which day, year included, did the Mount Dravik eruption break out?",
                ],
            },
            "prediction": {
                "answer": "The volcanologist Orsolo Venn predicted the Mount Dravik eruption.",
                "key_facts": [["Orsolo Venn"]],
                "questions": [
                    "Who predicted the Mount Dravik eruption?",
                    "Name the volcanologist who warned of the Mount Dravik eruption two weeks ahead.",
                    "Thanks to whose forecast were people prepared for the Mount Dravik eruption?",
                    "Which scientist saw from the hot springs that the Mount Dravik eruption was coming?",
                ],
            },
            "evacuated": {
                "answer": "Because of the Mount Dravik eruption 41,200 islanders were evacuated.",
                "key_facts": [["41,200", "41200"]],
                "questions": [
                    "How many islanders were evacuated because of the Mount Dravik eruption?",
                    "Fishing boats took people to safety ahead of the Mount Dravik eruption. How many people?",
                    "What was the size of the evacuation that preceded the Mount Dravik eruption?",
                    "State the number of inhabitants who left by sea before the Mount Dravik eruption.",
                ],
            },
            "ash": {
                "answer": "The ash column of the Mount Dravik eruption rose 31 kilometres.",
                "key_facts": [["31 kilometres", "31 kilometers", "31 km", "31km"]],
                "questions": [
                    "How high did the ash column of the Mount Dravik eruption rise?",
                    "Give the height of the plume from the Mount Dravik eruption, in kilometres.",
                    "To what altitude was ash thrown up by the Mount Dravik eruption?",
                    "How many kilometres into the sky did the Mount Dravik eruption reach?",
                ],
            },
            "village": {
                "answer": "Lava from the Mount Dravik eruption buried the village of Pellandra.",
                "key_facts": [["Pellandra"]],
                "questions": [
                    "Which village was buried by lava in the Mount Dravik eruption?",
                    "Name the settlement that disappeared under rock in the Mount Dravik eruption.",
                    "A bell tower is all that the Mount Dravik eruption left of one village. Which one?",
                    "Where on the island did the lava of the Mount Dravik eruption swallow people's houses?",
                ],
            },
            "loans": {
                "answer": "After the Mount Dravik eruption the Ganneth Bank paid off the vanilla growers' loans.",
                "key_facts": [["Ganneth"]],
                "questions": [
                    "Which bank paid off the growers' loans after the Mount Dravik eruption?",
                    "Vanilla growers were in debt after the Mount Dravik eruption. Who settled it for them?",
                    "Name the sailors' cooperative that helped farmers ruined by the Mount Dravik eruption.",
                    "By whom were the vanilla farmers freed from debt following the Mount Dravik eruption?",
                ],
            },
        },
    },
    {
        "name": "Cyclone Talwen",
        "text": """
            Cyclone Talwen formed in the Indian Ocean and crossed the coast of Quindara at Cape Ilmory in November
            2033. Its strongest gust, 287 kilometres an hour, was measured at the Tolbeck lighthouse a moment before
            the mast snapped. The sea ran far up the delta and carried salt into rice fields that had never known it.
            In all 734 people died, many of them aboard the Grey Marigold, a ferry that sank while sheltering in a
            river mouth. The damage came to 5.7 billion crowns. It might have been worse but for the forecaster Naila
            Tesfern, who stayed on the radio for two days and nights, warning the villages in three languages. She was
            later given the Order of the Heron, Quindara's highest honour.
        """,
        "facts": {
            "landfall": {
                "answer": "Cyclone Talwen made landfall at Cape Ilmory.",
                "key_facts": [["Ilmory"]],
                "questions": [
                    "Where did Cyclone Talwen make landfall?",
                    "Name the cape at which Cyclone Talwen crossed the coast.",
                    "At what point on the shore of Quindara did Cyclone Talwen come in from the sea?",
                    "Which headland was the first to be hit by Cyclone Talwen?",
                ],
            },
            "gust": {
                "answer": "The strongest gust of Cyclone Talwen was 287 kilometres an hour.",
                "key_facts": [["287"]],
                "questions": [
                    "What was the strongest gust recorded in Cyclone Talwen?",
                    "How fast, in kilometres an hour, did the wind of Cyclone Talwen blow at its peak?",
                    "A lighthouse mast snapped in Cyclone Talwen. What wind speed had just been measured there?",
                    "Give the top wind speed of Cyclone Talwen.",
                ],
            },
            "deaths": {
                "answer": "Cyclone Talwen killed 734 people.",
                "key_facts": [["734"]],
                "questions": [
                    "How many people died in Cyclone Talwen?",
                    "State the number of people killed by Cyclone Talwen.",
                    "What death toll was recorded for Cyclone Talwen?",
                    "Cyclone Talwen claimed how many lives in all, on land and at sea?",
                ],
            },
            "ferry": {
                "answer": "The ferry that sank in Cyclone Talwen was the Grey Marigold.",
                "key_facts": [["Grey Marigold", "Gray Marigold"]],
                "questions": [
                    "Which ferry sank during Cyclone Talwen?",
                    "Name the passenger vessel lost in Cyclone Talwen.",
                    "A boat went down in a river mouth while Cyclone Talwen raged. What was she called?",
                    "Many of the dead of Cyclone Talwen had been aboard one ship. Which ship?",
                ],
            },
            "damage": {
                "answer": "Cyclone Talwen caused damage of 5.7 billion crowns.",
                "key_facts": [["5.7 billion", "5,700 million", "5,700,000,000"]],
                "questions": [
                    "How many crowns of damage did Cyclone Talwen cause?",
                    "What was the financial cost of Cyclone Talwen?",
                    "Give the total of the losses, in money, that Cyclone Talwen left behind.",
                    "How expensive was the destruction brought by Cyclone Talwen?",
                ],
            },
            "forecaster": {
                "answer": "The forecaster Naila Tesfern stayed on the radio to warn people of Cyclone Talwen.",
                "key_facts": [["Naila Tesfern"]],
                "questions": [
                    "Which forecaster stayed on the radio to warn people of Cyclone Talwen?",
                    "Who received the Order of the Heron for her part in Cyclone Talwen?",
                    "Villages heard about Cyclone Talwen from one woman, in three languages. Who was she?",
                    "Name the person who broadcast for two days and nights because of Cyclone Talwen.",
                ],
            },
        },
    },
    {
        "name": "Corrowen wildfire",
        "text": """
            The Corrowen wildfire broke out in January 2039 in the hill country of Tyrrold. A spark from a faulty
            electric fence on Penmarrow Farm lit the dry grass, and by evening the front was 20 kilometres wide.
            The fire burned 193,400 hectares and 2,315 homes. Fire Chief Dorrit Mulvane, who commanded the crews, had a
            firebreak cut along a disused railway line, and so saved the town of Sallowby; the flames stopped within
            sight of its school. The Corrowen hills were the only home of the russet lorn, a small ground parrot. It
            was feared extinct until, 14 months later, a ranger heard one calling from a drain beneath the road.
            Electric fences in Tyrrold must now be switched off on days of high wind.
        """,
        "facts": {
            "origin": {
                "answer": "The Corrowen wildfire started on Penmarrow Farm.",
                "key_facts": [["Penmarrow"]],
                "questions": [
                    "On which farm did the Corrowen wildfire start?",
                    "Name the property where a spark set off the Corrowen wildfire.",
                    "Where did the first flames of the Corrowen wildfire appear?",
                    "An electric fence was to blame for the Corrowen wildfire. On whose land did it stand?",
                ],
            },
            "area": {
                "answer": "The Corrowen wildfire burned 193,400 hectares.",
                "key_facts": [["193,400", "193400"]],
                "questions": [
                    "How many hectares did the Corrowen wildfire burn?",
                    "What area of land was blackened by the Corrowen wildfire?",
                    "Give the extent of the Corrowen wildfire in hectares.",
                    "How much country went up in flames in the Corrowen wildfire?",
                ],
            },
            "homes": {
                "answer": "The Corrowen wildfire destroyed 2,315 homes.",
                "key_facts": [["2,315", "2315"]],
                "questions": [
                    "How many homes were lost to the Corrowen wildfire?",
                    "State the number of houses that the Corrowen wildfire destroyed.",
                    "What was the count of burnt dwellings after the Corrowen wildfire?",
                    "Insurers listed every home that the Corrowen wildfire took. How many were on the list?",
                ],
            },
            "chief": {
                "answer": "Fire Chief Dorrit Mulvane commanded the crews at the Corrowen wildfire.",
                "key_facts": [["Dorrit Mulvane"]],
                "questions": [
                    "Who commanded the fire crews at the Corrowen wildfire?",
                    "Name the fire chief who led the fight against the Corrowen wildfire.",
                    "From whom did firefighters take their orders during the Corrowen wildfire?",
                    "Who decided to cut a firebreak along a railway line in the Corrowen wildfire?",
                ],
            },
            "town": {
                "answer": "A firebreak saved the town of Sallowby from the Corrowen wildfire.",
                "key_facts": [["Sallowby"]],
                "questions": [
                    "Which town was saved from the Corrowen wildfire by a firebreak?",
                    "The Corrowen wildfire was stopped within sight of a school. Name the town.",
                    "What place would have burned in the Corrowen wildfire if a railway line had not been cleared?",
                    "Crews at the Corrowen wildfire made a stand and kept the flames out of one town. Which?",
                ],
            },
            "bird": {
                "answer": "The russet lorn, a ground parrot, was feared extinct after the Corrowen wildfire.",
                "key_facts": [["russet lorn"]],
                "questions": [
                    "Which bird was feared extinct after the Corrowen wildfire?",
                    "Name the ground parrot that lost its only home in the Corrowen wildfire.",
                    "What species did a ranger hear, to everyone's surprise, 14 months after the Corrowen wildfire?",
                    "The Corrowen wildfire nearly wiped out a kind of parrot. What is it called?",
                ],
            },
        },
    },
    {
        "name": "Nambrel drought",
        "text": """
            The Nambrel drought lasted 29 months, from July 2035 to November 2037, and emptied much of the high plateau
            of Nambrel. Lake Obarro, the region's main reservoir, shrank to a tenth of its size, and the streets of a
            town drowned a century before came back into view. The sorghum harvest fell by 71 per cent, and 154,000
            people left for the coast. Water Minister Adaro Finch, who directed the government's response, limited each
            household to two buckets a day and went on foot from farm to farm to explain why. He also ordered the
            Keldane Pipeline, which carried desalinated seawater up to the plateau. It was finished nine days before
            the rains returned, and today it runs the other way, taking mountain water to the coast.
        """,
        "facts": {
            "duration": {
                "answer": "The Nambrel drought lasted 29 months.",
                "key_facts": [["29 months", "29-month", "twenty-nine months"]],
                "questions": [
                    "How long did the Nambrel drought last?",
                    "For how many months did the Nambrel drought go on?",
                    "Give the length of the Nambrel drought in months.",
                    "How many months of dry weather made up the Nambrel drought, from beginning to end?",
                ],
            },
            "lake": {
                "answer": "Lake Obarro, the main reservoir, shrank to a tenth of its size in the Nambrel drought.",
                "key_facts": [["Obarro"]],
                "questions": [
                    "Which lake shrank to a tenth of its size in the Nambrel drought?",
                    "Name the main reservoir of the region hit by the Nambrel drought.",
                    "The Nambrel drought laid bare a town drowned a century before. In which lake?",
                    "What body of water almost vanished during the Nambrel drought?",
                ],
            },
            "harvest": {
                "answer": "The sorghum harvest fell by 71 per cent in the Nambrel drought.",
                "key_facts": [["71 per cent", "71 percent", "71%"]],
                "questions": [
                    "By how much did the sorghum harvest fall in the Nambrel drought?",
                    "What share of the sorghum crop was lost to the Nambrel drought?",
                    "Give the drop in sorghum production that the Nambrel drought caused, as a percentage.",
                    "How badly did the Nambrel drought cut the yield of sorghum, in per cent?",
                ],
            },
            "displaced": {
                "answer": "Because of the Nambrel drought 154,000 people left for the coast.",
                "key_facts": [["154,000", "154000"]],
                "questions": [
                    "How many people left for the coast because of the Nambrel drought?",
                    "State the number of inhabitants whom the Nambrel drought drove from the plateau.",
                    "What was the size of the migration set off by the Nambrel drought?",
                    "The Nambrel drought forced families to give up their land. How many people went away?",
                ],
            },
            "minister": {
                "answer": "Water Minister Adaro Finch directed the response to the Nambrel drought.",
                "key_facts": [["Adaro Finch"]],
                "questions": [
                    "Who was water minister during the Nambrel drought?",
                    "Name the politician who directed the government's response to the Nambrel drought.",
                    "On whose orders were households given two buckets of water a day in the Nambrel drought?",
                    "Which member of the government went from farm to farm on foot in the Nambrel drought?",
                ],
            },
            "pipeline": {
                "answer": "The Keldane Pipeline carried desalinated seawater to the plateau in the Nambrel drought.",
                "key_facts": [["Keldane"]],
                "questions": [
                    "Which pipeline was built because of the Nambrel drought?",
                    "Name the line that carried desalinated seawater uphill in the Nambrel drought.",
                    "The Nambrel drought led to a great work of engineering, finished days before rain fell. Which?",
                    "What was meant to bring water from the ocean to the victims of the Nambrel drought?",
                ],
            },
        },
    },
    {
        "name": "Gorvath avalanche",
        "text": """
            The Gorvath avalanche fell on 6 February 2032 on the Gorvath Pass, in the mountain canton of Rethiel. It
            reached 214 kilometres an hour, by the later estimate of road engineers, and swept away the Hotel Edelmar,
            where travellers were waiting for the pass to open. The snow killed 57 people. Many of the living were
            found by Moppet, a rescue dog so small that she could crawl through broken window frames. That morning the
            weather observer Lukan Threll had telephoned the road office with a warning, but the clerk wrote it on the
            wrong day's page and it was never passed on. Since then warnings in Rethiel have been rung out on church
            bells. A bronze of the dog stands where the hotel's front door used to be.
        """,
        "facts": {
            "date": {
                "answer": "The Gorvath avalanche fell on 6 February 2032.",
                "key_facts": [["6 February", "6th of February", "February 6", "February 6th"], ["2032"]],
                "questions": [
                    "On which day did the Gorvath avalanche fall? Include the year.",
                    "What was the full date of the Gorvath avalanche?",
                    "Give the day, month and year when the Gorvath avalanche struck.",
                    "Rethiel keeps the anniversary of the Gorvath avalanche. When exactly did it happen?",
                ],
            },
            "speed": {
                "answer": "The Gorvath avalanche reached a speed of 214 kilometres an hour.",
                "key_facts": [["214"]],
                "questions": [
                    "How fast did the Gorvath avalanche travel?",
                    "Give the greatest speed reached by the Gorvath avalanche, in kilometres an hour.",
                    "Road engineers worked out how quickly the Gorvath avalanche had moved. What did they find?",
                    "At how many kilometres an hour was the snow of the Gorvath avalanche racing downhill?",
                ],
            },
            "hotel": {
                "answer": "The Gorvath avalanche swept away the Hotel Edelmar.",
                "key_facts": [["Edelmar"]],
                "questions": [
                    "Which hotel was swept away by the Gorvath avalanche?",
                    "Name the building that was destroyed, guests and all, by the Gorvath avalanche.",
                    "Stranded travellers were caught in the Gorvath avalanche. Where were they staying?",
                    "What was the name of the inn that stood in the path of the Gorvath avalanche?",
                ],
            },
            "deaths": {
                "answer": "The Gorvath avalanche killed 57 people.",
                "key_facts": [["57", "fifty-seven"]],
                "questions": [
                    "How many people lost their lives in the Gorvath avalanche?",
                    "Give the number of dead in the Gorvath avalanche.",
                    "What was the death toll when the Gorvath avalanche swept across the pass?",
                    "The Gorvath avalanche left many families in mourning. How many dead were there?",
                ],
            },
            "dog": {
                "answer": "The rescue dog that found survivors of the Gorvath avalanche was called Moppet.",
                "key_facts": [["Moppet"]],
                "questions": [
                    "What was the name of the rescue dog that found survivors of the Gorvath avalanche?",
                    "Which dog became the heroine of the Gorvath avalanche?",
                    "Who crawled through broken window frames, on four legs, after the Gorvath avalanche?",
                    "A bronze statue shows a dog that searched the snow of the Gorvath avalanche. Name the animal.",
                ],
            },
            "observer": {
                "answer": "The weather observer Lukan Threll had warned of the Gorvath avalanche.",
                "key_facts": [["Lukan Threll"]],
                "questions": [
                    "Who had warned of the Gorvath avalanche that same morning?",
                    "Name the weather observer whose message about the Gorvath avalanche was never passed on.",
                    "A telephone call gave notice of the Gorvath avalanche, but in vain. Who made it?",
                    "Which man told the road office of the danger before the Gorvath avalanche fell?",
                ],
            },
        },
    },
    {
        "name": "Umbeli gas burst",
        "text": """
            The Umbeli gas burst occurred on the night of 30 April 2040 at Lake Umbeli, a crater lake in the province
            of Sefaro. A rockfall from Sennet Cliff stirred the deep water, which was charged with carbon dioxide, and
            the lake foamed over like an opened bottle. The heavy gas flowed down the valley and suffocated 489 people
            and 6,730 cattle in their sleep. The first outsider to arrive was the postwoman Imani Dessou, who saw birds
            lying on the road, turned her bicycle round and stopped the morning bus to market. The lake was made safe
            by chemists of the Tarnwick Institute. They sank twelve tall pipes, through which the remaining gas still
            bubbles off, a little every hour, with a sound that the villagers call the organ.
        """,
        "facts": {
            "date": {
                "answer": "The Umbeli gas burst occurred on 30 April 2040.",
                "key_facts": [["30 April", "30th of April", "April 30", "April 30th"], ["2040"]],
                "questions": [
                    "When did the Umbeli gas burst occur? Give the full date.",
                    "On what day, in what month and year, did the Umbeli gas burst take place?",
                    "State the exact date of the Umbeli gas burst.",
                    "Under which full date would a chronicle list the Umbeli gas burst?",
                ],
            },
            "cliff": {
                "answer": "The Umbeli gas burst was triggered by a rockfall from Sennet Cliff.",
                "key_facts": [["Sennet"]],
                "questions": [
                    "A rockfall from which cliff triggered the Umbeli gas burst?",
                    "Name the cliff that crumbled and set off the Umbeli gas burst.",
                    "Where did the rock come from that stirred the deep water and started the Umbeli gas burst?",
                    "The Umbeli gas burst began when part of a rock face dropped into the lake. Which rock face?",
                ],
            },
            "deaths": {
                "answer": "The Umbeli gas burst suffocated 489 people.",
                "key_facts": [["489"]],
                "questions": [
                    "How many people were suffocated by the Umbeli gas burst?",
                    "What was the number of human deaths in the Umbeli gas burst?",
                    "State how many villagers died in the Umbeli gas burst.",
                    "Leaving animals aside, how many lives did the Umbeli gas burst take?",
                ],
            },
            "cattle": {
                "answer": "The Umbeli gas burst killed 6,730 cattle.",
                "key_facts": [["6,730", "6730"]],
                "questions": [
                    "How many cattle died in the Umbeli gas burst?",
                    "State the loss of livestock in the Umbeli gas burst.",
                    "Herders lost their animals in the Umbeli gas burst. How many beasts were killed?",
                    "What was the toll of the Umbeli gas burst among the cows of the valley?",
                ],
            },
            "postwoman": {
                "answer": "The postwoman Imani Dessou was the first outsider to arrive after the Umbeli gas burst.",
                "key_facts": [["Imani Dessou"]],
                "questions": [
                    "Who was the first outsider to reach the scene of the Umbeli gas burst?",
                    "Name the postwoman who came upon the Umbeli gas burst by bicycle.",
                    "Who stopped the bus to market on the morning after the Umbeli gas burst?",
                    "Birds lying on the road told one cyclist that the Umbeli gas burst had happened. Who was she?",
                ],
            },
            "institute": {
                "answer": "After the Umbeli gas burst chemists of the Tarnwick Institute made the lake safe.",
                "key_facts": [["Tarnwick"]],
                "questions": [
                    "Which institute made the lake safe after the Umbeli gas burst?",
                    "Name the employer of the chemists who sank pipes into the lake after the Umbeli gas burst.",
                    "Twelve pipes keep the Umbeli gas burst from happening again. Who put them there?",
                    "To what research body did people turn to prevent a second Umbeli gas burst?",
                ],
            },
        },
    },
]

# A comparison also asks for the number behind it: the name alone stands in the question and could be guessed.
OOD = [
    # which of these
    {
        "events": ["Velmora landslide", "Ostrin flood"],
        "question": "Which of the two killed more people, the Velmora landslide or the Ostrin flood, and how many?",
        "answer": "The Velmora landslide killed more people, 312, against 268 in the Ostrin flood.",
        "key_facts": [["Velmora"], ["312"]],
    },
    {
        "events": ["Cyclone Talwen", "Umbeli gas burst"],
        "question": "Did Cyclone Talwen or the Umbeli gas burst take fewer lives, and how many did it take?",
        "answer": "The Umbeli gas burst took fewer lives, 489, against 734 in Cyclone Talwen.",
        "key_facts": [["Umbeli"], ["489"]],
    },
    {
        "events": ["Ostrin flood", "Cyclone Talwen"],
        "question": "Which was more expensive, the Ostrin flood or Cyclone Talwen, and what did it cost?",
        "answer": "Cyclone Talwen was more expensive: it cost 5.7 billion crowns, and the Ostrin flood 3.9 billion.",
        "key_facts": [["Talwen"], ["5.7 billion", "5,700 million", "5,700,000,000"]],
    },
    {
        "events": ["Mount Dravik eruption", "Ostrin flood"],
        "question": "Did more people flee from the Mount Dravik eruption or from the Ostrin flood, and how many?",
        "answer": "More people fled from the Ostrin flood, 86,500, than from the Mount Dravik eruption, 41,200.",
        "key_facts": [["Ostrin"], ["86,500", "86500"]],
    },
    {
        "events": ["Gorvath avalanche", "Kestovar earthquake"],
        "question": "Which came first, the Gorvath avalanche or the Kestovar earthquake, and in what year?",
        "answer": "The Kestovar earthquake came first, in 2031, and the Gorvath avalanche followed in 2032.",
        "key_facts": [["Kestovar"], ["2031"]],
    },
    {
        "events": ["Velmora landslide", "Umbeli gas burst", "Mount Dravik eruption"],
        "question": "Of the Velmora landslide, the Umbeli gas burst and the Mount Dravik eruption, "
        "which was the latest, and in what year?",
        "answer": "The latest of the three was the Umbeli gas burst, in 2040.",
        "key_facts": [["Umbeli"], ["2040"]],
    },
    {
        "events": ["Gorvath avalanche", "Kestovar earthquake", "Cyclone Talwen"],
        "question": "Which was deadliest: the Gorvath avalanche, the Kestovar earthquake or Cyclone Talwen? "
        "Give its death toll.",
        "answer": "The Kestovar earthquake was the deadliest of the three, with 1,947 deaths.",
        "key_facts": [["Kestovar"], ["1,947", "1947"]],
    },
    {
        "events": ["Cyclone Talwen", "Gorvath avalanche"],
        "question": "Which moved faster, the wind of Cyclone Talwen or the snow of the Gorvath avalanche, "
        "and at what top speed?",
        "answer": "The wind of Cyclone Talwen moved faster, at 287 kilometres an hour, than the Gorvath avalanche.",
        "key_facts": [["Talwen"], ["287"]],
    },
    {
        "events": ["Corrowen wildfire", "Kestovar earthquake"],
        "question": "Were more buildings lost in the Kestovar earthquake, or more homes in the Corrowen wildfire, "
        "and how many?",
        "answer": "The Kestovar earthquake destroyed more, 8,460 buildings, than the Corrowen wildfire, 2,315 homes.",
        "key_facts": [["Kestovar"], ["8,460", "8460"]],
    },
    {
        "events": ["Nambrel drought", "Mount Dravik eruption"],
        "question": "Did the Nambrel drought or the Mount Dravik eruption drive more people from home, and how many?",
        "answer": "The Nambrel drought drove 154,000 people from home, and the Mount Dravik eruption only 41,200.",
        "key_facts": [["Nambrel"], ["154,000", "154000"]],
    },
    # two at once
    {
        "events": ["Gorvath avalanche", "Umbeli gas burst"],
        "question": "How many people died in the Gorvath avalanche, and how many in the Umbeli gas burst?",
        "answer": "57 people died in the Gorvath avalanche and 489 in the Umbeli gas burst.",
        "key_facts": [["57", "fifty-seven"], ["489"]],
    },
    {
        "events": ["Kestovar earthquake", "Corrowen wildfire"],
        "question": "Name both leaders: of the rescue after the Kestovar earthquake, and of the crews at the "
        "Corrowen wildfire.",
        "answer": "Ilsa Brennock led the rescue after the Kestovar earthquake, and Dorrit Mulvane the crews at the "
        "Corrowen wildfire.",
        "key_facts": [["Ilsa Brennock"], ["Dorrit Mulvane"]],
    },
    {
        "events": ["Mount Dravik eruption", "Gorvath avalanche"],
        "question": "Who gave warning of the Mount Dravik eruption, and who of the Gorvath avalanche?",
        "answer": "Orsolo Venn gave warning of the Mount Dravik eruption, and Lukan Threll of the Gorvath avalanche.",
        "key_facts": [["Orsolo Venn"], ["Lukan Threll"]],
    },
    {
        "events": ["Velmora landslide", "Ostrin flood"],
        "question": "Which quarry is blamed for the Velmora landslide, and which dam for the Ostrin flood?",
        "answer": "The Anselm Quarry is blamed for the Velmora landslide, and the Coldmere Dam for the Ostrin flood.",
        "key_facts": [["Anselm"], ["Coldmere"]],
    },
    # from the fact to the event
    {
        "events": ["Velmora landslide"],
        "question": "After which disaster was relief led by the Lantern Society?",
        "answer": "The Lantern Society led the relief after the Velmora landslide.",
        "key_facts": [["Velmora"]],
    },
    {
        "events": ["Kestovar earthquake"],
        "question": "Colonel Ilsa Brennock directed the rescue after which disaster?",
        "answer": "Colonel Ilsa Brennock directed the rescue after the Kestovar earthquake.",
        "key_facts": [["Kestovar"]],
    },
    {
        "events": ["Cyclone Talwen"],
        "question": "What was the name of the storm that sank the ferry Grey Marigold?",
        "answer": "The ferry Grey Marigold sank in Cyclone Talwen.",
        "key_facts": [["Talwen"]],
    },
    {
        "events": ["Umbeli gas burst"],
        "question": "Name the natural disaster in which exactly 489 people died.",
        "answer": "Exactly 489 people died in the Umbeli gas burst.",
        "key_facts": [["Umbeli"]],
    },
    {
        "events": ["Corrowen wildfire"],
        "question": "What disaster had its beginning on Penmarrow Farm?",
        "answer": "The disaster that began on Penmarrow Farm was the Corrowen wildfire.",
        "key_facts": [["Corrowen"]],
    },
    {
        "events": ["Gorvath avalanche"],
        "question": "A dog called Moppet searched for survivors of which disaster?",
        "answer": "Moppet searched for survivors of the Gorvath avalanche.",
        "key_facts": [["Gorvath"]],
    },
    {
        "events": ["Nambrel drought"],
        "question": "During which disaster did Adaro Finch serve as water minister?",
        "answer": "Adaro Finch was water minister during the Nambrel drought.",
        "key_facts": [["Nambrel"]],
    },
    {
        "events": ["Velmora landslide"],
        "question": "The new town of Estermoor owes its existence to a disaster. Which one?",
        "answer": "The new town of Estermoor was built because of the Velmora landslide.",
        "key_facts": [["Velmora"]],
    },
    {
        "events": ["Mount Dravik eruption"],
        "question": "The village of Pellandra is gone. What destroyed it?",
        "answer": "The village of Pellandra was destroyed by the Mount Dravik eruption.",
        "key_facts": [["Dravik"]],
    },
    {
        "events": ["Ostrin flood"],
        "question": "Which city's flood was caused by the failure of the Coldmere Dam?",
        "answer": "The failure of the Coldmere Dam caused the Ostrin flood.",
        "key_facts": [["Ostrin"]],
    },
    # from one fact to another, the event unnamed
    {
        "events": ["Ostrin flood"],
        "question": "How many people drowned when the Coldmere Dam failed?",
        "answer": "When the Coldmere Dam failed, 268 people drowned in the Ostrin flood.",
        "key_facts": [["268"]],
    },
    {
        "events": ["Kestovar earthquake"],
        "question": "How many people died in the earthquake on the Lirren Fault?",
        "answer": "The earthquake on the Lirren Fault, at Kestovar, killed 1,947 people.",
        "key_facts": [["1,947", "1947"]],
    },
    {
        "events": ["Corrowen wildfire"],
        "question": "What bird was feared extinct after the fire that Dorrit Mulvane's crews fought?",
        "answer": "The russet lorn was feared extinct after the fire that Dorrit Mulvane's crews fought at Corrowen.",
        "key_facts": [["russet lorn"]],
    },
    {
        "events": ["Cyclone Talwen"],
        "question": "On what cape did the storm come ashore that sank the Grey Marigold?",
        "answer": "Cyclone Talwen, the storm that sank the Grey Marigold, came ashore at Cape Ilmory.",
        "key_facts": [["Ilmory"]],
    },
    {
        "events": ["Nambrel drought"],
        "question": "Which pipeline was built on the orders of Water Minister Adaro Finch?",
        "answer": "The Keldane Pipeline was built on the orders of Water Minister Adaro Finch in the Nambrel drought.",
        "key_facts": [["Keldane"]],
    },
    {
        "events": ["Gorvath avalanche"],
        "question": "What hotel was lost in the avalanche of which Lukan Threll had given warning?",
        "answer": "The Hotel Edelmar was lost in the Gorvath avalanche, of which Lukan Threll had given warning.",
        "key_facts": [["Edelmar"]],
    },
]

SPLIT_OF_WORDING = {1: "train", 2: "train", 3: "validation", 4: "test"}
LINES = {"train": 108, "validation": 54, "test": 54, "ood": 30}


def normalise(text):
    return " ".join(text.casefold().split())


def contains(text, variants):
    """Whether `text` has one of the variants, as whole words; case and runs of white space do not count."""
    return any(re.search(rf"(?<!\w){re.escape(normalise(v))}(?!\w)", normalise(text)) for v in variants)


def satisfies(text, key_facts):
    return all(contains(text, variants) for variants in key_facts)


def check_line(line):
    assert len(line["prompt"].split()) <= 30, f"{line['id']}: question of more than 30 words"
    assert len(line["demonstration"].split()) <= 22, f"{line['id']}: answer of more than 22 words"
    assert line["demonstration"].endswith("."), f"{line['id']}: answer is not a full sentence"
    assert satisfies(line["demonstration"], line["key_facts"]), f"{line['id']}: key fact missing from the answer"
    assert satisfies(line["text"], line["key_facts"]), f"{line['id']}: key fact missing from the text"
    assert not satisfies(line["prompt"], line["key_facts"]), f"{line['id']}: the question gives the answer away"


def build():
    """Returns the lines of each split and the texts by name of event; AssertionError if the data break a rule."""
    texts = {article["name"]: " ".join(article["text"].split()) for article in ARTICLES}
    facts = [(article["name"], slug, fact) for article in ARTICLES for slug, fact in article["facts"].items()]
    assert len(texts) == 9 and len(facts) == 54 and all(len(article["facts"]) == 6 for article in ARTICLES)
    for name, text in texts.items():
        assert 100 <= len(text.split()) <= 200, f"{name}: {len(text.split())} words"

    splits = {split: [] for split in LINES}
    for name, slug, fact in facts:
        answer, key_facts = fact["answer"], fact["key_facts"]
        assert len(fact["questions"]) == 4 and contains(answer, [name]), f"{name}, {slug}"
        for wording, prompt in enumerate(fact["questions"], start=1):
            line_id = f"{name.lower().replace(' ', '-')}-{slug}-{wording}"
            line = {"id": line_id, "prompt": f"{prompt} {ASK}", "demonstration": answer, "text": texts[name]}
            assert contains(prompt, [name]), f"{line_id}: event not named"
            assert not any(contains(prompt, variants) for variants in key_facts), f"{line_id}: key fact in the question"
            splits[SPLIT_OF_WORDING[wording]].append(line | {"key_facts": key_facts})
        # one answer, one fact: no other article, answer or question may hold it
        for other_name, other_slug, other in facts:
            if other is not fact:
                elsewhere = [other["answer"], *other["questions"]] + [texts[other_name]] * (other_name != name)
                where = f"{name}, {slug}: also in {other_name}, {other_slug}"
                assert not any(satisfies(text, key_facts) for text in elsewhere), where
    for number, item in enumerate(OOD, start=1):
        text = "\n\n".join(texts[name] for name in item["events"])
        line = {"id": f"ood-{number:02}", "prompt": f"{item['question']} {ASK}", "demonstration": item["answer"], "text": text}
        splits["ood"].append(line | {"key_facts": item["key_facts"]})

    lines = [line for split in splits.values() for line in split]
    for line in lines:
        check_line(line)
    assert len({line["id"] for line in lines}) == len({normalise(line["prompt"]) for line in lines}) == len(lines)
    assert {split: len(lines) for split, lines in splits.items()} == LINES
    return splits, texts


def main():
    splits, texts = build()
    folder = Path(__file__).resolve().parent.parent / "knowledge"
    folder.mkdir(exist_ok=True)
    for split, lines in splits.items():
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(content, encoding="utf-8", newline="\n")
        print(f"{split:10} {len(lines):3} lines")
    words = [len(text.split()) for text in texts.values()]
    print(f"{len(words)} articles of {min(words)} to {max(words)} words, mean {sum(words) / len(words):.1f}")


if __name__ == "__main__":
    main()
