"""Write samples/tooluse/{train,validation,test}.jsonl: requests, tools to serve them with, and the
calls that do.

    python samples/make/tooluse.py

The prompts have ToolAlpaca's form, with short documentation. All tools are invented, and every
split has tools of its own: what is learned is to read documentation and to call, not a tool. The
tables at the end of this file hold tools, wordings and values; calls and demonstrations are built
from them and checked against the documentation. Every run writes the same bytes.
"""

import json
import re
from itertools import cycle
from pathlib import Path
from random import Random
from typing import NamedTuple

SEED = 2026
FOLDER = Path(__file__).resolve().parent.parent / "tooluse"
BEFORE_TOOLS = (
    "Your task is to answer the user's question using available tools. \n"
    "You have access to the following tools:\n"
)
AFTER_TOOLS = """

Use the following format:
Thought: you should always think about what to do
Action: the action to take, should be one of the tool names.
Action Input: the input to the action, must be in JSON format. \
All of the action input must be realistic and from the user.

Begin!
Question: """


class Function(NamedTuple):
    name: str
    description: str
    parameters: dict  # name -> "[Required. ]type. [One of: [a, b]. ]Description."
    output: str


class Requests(NamedTuple):
    """Requests of one kind: a row of values for each, in the wordings by turns."""

    columns: str
    rows: list
    wordings: list
    steps: list  # (function, arguments, purpose); arguments are columns, or "name=column"


class Tool(NamedTuple):
    name: str
    description: str
    functions: list
    requests: list


def main():
    rng = Random(SEED)
    splits = {
        split: shuffled(rng, [line for tool in tools for line in make_lines(tool)])
        for split, tools in TOOLS.items()
    }
    check(splits)
    FOLDER.mkdir(exist_ok=True)
    for split, lines in splits.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        # bytes: text mode writes \r\n on Windows
        (FOLDER / f"{split}.jsonl").write_bytes(text.encode("utf-8"))
        print(f"{split}: {len(lines)} requests to {len(TOOLS[split])} tools")


def make_lines(tool):
    lines = []
    for kind in tool.requests:
        for row, wording in zip(kind.rows, cycle(kind.wordings)):
            values = dict(zip(kind.columns.split(), row, strict=True))
            question = wording.format(**spoken(values))
            calls = [
                {"name": function, "arguments": choose(values, arguments)}
                for function, arguments, _ in kind.steps
            ]
            for call in calls:
                check_call(call, tool, question)
            lines.append(
                {
                    "id": f"{re.sub('[^a-z0-9]+', '-', tool.name.lower())}-{len(lines) + 1}",
                    "prompt": BEFORE_TOOLS + describe(tool) + AFTER_TOOLS + question,
                    "demonstration": demonstrate(kind, calls, values),
                    "calls": calls,
                }
            )
    return lines


def describe(tool):
    lines = [f"Name: {tool.name}", f"Description: {tool.description}", "Documentation:"]
    for function in tool.functions:
        parameters = json.dumps(function.parameters)
        lines += [
            f"{function.name}: {function.description}",
            f"Parameters: {parameters}",
            f"Output: {function.output}",
        ]
    return "\n".join(lines)


def demonstrate(kind, calls, values):
    parts = []
    for (function, _, purpose), call in zip(kind.steps, calls, strict=False):
        start = "I also need" if parts else "I need to use"
        parts.append(
            f"{start} the {function} tool to {purpose.format(**spoken(values))}.\n"
            f"Action: {function}\nAction Input: {json.dumps(call['arguments'], ensure_ascii=False)}"
        )
    return "\n".join(parts)


def choose(values, arguments):
    """ "stop time=start" -> {"stop": values["stop"], "time": values["start"]}."""
    pairs = [argument.partition("=")[::2] for argument in arguments.split()]
    return {name: values[column or name] for name, column in pairs}


def spoken(values):
    """Lists as a person says them: "leeks, rice and eggs"."""
    return {
        name: " and ".join(filter(None, [", ".join(value[:-1]), value[-1]]))
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }


def shuffled(rng, items):
    # random() is the one method whose sequence Python promises to keep from version to version
    return sorted(items, key=lambda _: rng.random())


# ---- checks


def check(splits):
    lines = [line for split in splits.values() for line in split]
    assert (
        len({line["id"] for line in lines})
        == len({question_of(line) for line in lines})
        == len(lines)
    ), "repeated"
    names = [tool.name for tools in TOOLS.values() for tool in tools]
    assert len(names) == len(set(names)) >= 12 and len(lines) >= 160, (
        "a tool stands in one split only"
    )
    assert [len(split) for split in splits.values()] == [110, 21, 32]
    assert 0.15 <= sum(len(line["calls"]) == 2 for line in lines) / len(lines) <= 0.3, (
        "requests of two steps"
    )
    for line in lines:
        inputs = [
            json.loads(text)
            for text in re.findall("^Action Input: (.*)$", line["demonstration"], re.MULTILINE)
        ]
        assert inputs == [call["arguments"] for call in line["calls"]], line["id"]
        # about 3.5 characters a token in a demonstration, 3.7 in a prompt: at most 80 and 320
        # tokens
        assert len(line["demonstration"]) <= 285 and len(line["prompt"]) <= 1200, line["id"]


def check_call(call, tool, question):
    """Required arguments are there, types and choices are right, and every value is in the question
    or in the documentation.
    """
    parameters = next(
        function.parameters for function in tool.functions if function.name == call["name"]
    )
    place = f"{tool.name}, {question!r}, {call}"
    required = {name for name, text in parameters.items() if text.startswith("Required. ")}
    assert required <= call["arguments"].keys() <= parameters.keys(), place
    for name, value in call["arguments"].items():
        text = parameters[name].removeprefix("Required. ")
        kind = text.split(".")[0]
        assert isinstance(value, TYPES[kind]) and isinstance(value, bool) == (kind == "boolean"), (
            place,
            name,
        )
        choices = re.search(r"One of: \[(.*?)\]", text)
        assert choices is None or value in choices[1].split(", "), (place, name)
        for item in value if isinstance(value, list) else [value]:
            said = re.search(
                rf"(?<!\w){re.escape(json.dumps(item).strip(chr(34)))}(?!\w)",
                f"{question} {text}",
                re.IGNORECASE,
            )
            assert said, (
                f"{place}: {item!r} stands neither in the question nor in the documentation"
            )


def question_of(line):
    return line["prompt"].split("\nQuestion: ")[1]


# ---- tables

TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "Array[string]": list,
}

LIBRARY = Tool(
    "Riverside Library",
    "Catalogue and loans of a town library.",
    [
        Function(
            "searchBooks",
            "Find books in the catalogue.",
            {
                "topic": "Required. string. Topic of the books.",
                "limit": "integer. Most books to list.",
            },
            "Array[Object{bookId, title}]",
        ),
        Function(
            "reserveBook",
            "Put a book aside for a reader.",
            {
                "bookId": "Required. string. Id of the book.",
                "card": "Required. string. Number of the library card.",
            },
            "Object{shelf, until}",
        ),
        Function(
            "renewLoans",
            "Extend all loans of a reader.",
            {
                "card": "Required. string. Number of the library card.",
                "weeks": "integer. Weeks to add.",
            },
            "Array[Object{bookId, due}]",
        ),
    ],
    [
        Requests(
            "topic limit",
            [("beekeeping", 5), ("sailing", 3), ("Roman roads", 10)],
            [
                "I'd like to read about {topic}. Show me up to {limit} books.",
                "Which books on {topic} do you have? {limit} titles are enough.",
                "My daughter gives a talk on {topic}. Can you list {limit} books for her?",
            ],
            [("searchBooks", "topic limit", "find books about {topic}")],
        ),
        Requests(
            "bookId card",
            [("B-4471", "20315"), ("B-0982", "77120"), ("B-3156", "48809")],
            [
                "Please keep book {bookId} for me. My card number is {card}.",
                "Can I reserve {bookId}? I am reader {card}.",
                "Put {bookId} aside, I will fetch it tomorrow; library card {card}.",
            ],
            [("reserveBook", "bookId card", "reserve book {bookId}")],
        ),
        Requests(
            "card weeks",
            [("50417", 2), ("33890", 4)],
            [
                "I won't finish in time. Extend everything on card {card} by {weeks} weeks.",
                "Could you renew my loans for {weeks} more weeks? Card {card}.",
            ],
            [("renewLoans", "card weeks", "renew the loans of card {card}")],
        ),
        Requests(
            "topic bookId card",
            [("chess", "B-7003", "61254"), ("volcanoes", "B-1519", "90432")],
            [
                "Hold {bookId} for card {card}, and tell me what else you have about {topic}.",
                "I want {bookId} put aside (card {card}). Are there other books on {topic}?",
            ],
            [
                ("reserveBook", "bookId card", "reserve book {bookId}"),
                ("searchBooks", "topic", "find books about {topic}"),
            ],
        ),
    ],
)

TRAMS = Tool(
    "Linden Trams",
    "Timetable and service desk of a tram network.",
    [
        Function(
            "nextDepartures",
            "List the next trams at a stop.",
            {"stop": "Required. string. Name of the stop.", "line": "integer. Only this line."},
            "Array[Object{line, time}]",
        ),
        Function(
            "planTrip",
            "Find a connection.",
            {
                "from": "Required. string. First stop.",
                "to": "Required. string. Last stop.",
                "arriveBy": "string. Latest arrival, HH:MM.",
            },
            "Array[Object{line, stop, time}]",
        ),
        Function(
            "reportFault",
            "Report a damaged tram or stop.",
            {
                "place": "Required. string. Tram or stop.",
                "fault": "Required. string. What is broken.",
            },
            "Object{caseId}",
        ),
    ],
    [
        Requests(
            "stop line",
            [("Market Square", 4), ("Old Bridge", 11), ("Botanical Garden", 7)],
            [
                "When does line {line} leave from {stop}?",
                "I'm waiting at {stop}. How long until the next number {line}?",
                "Tell me the next departures of tram {line} at {stop}.",
            ],
            [("nextDepartures", "stop line", "list the next trams of line {line} at {stop}")],
        ),
        Requests(
            "from to arriveBy",
            [
                ("Harbour", "University", "09:15"),
                ("Mill Lane", "Central Station", "17:40"),
                ("Zoo", "Theatre", "19:30"),
            ],
            [
                "How do I get from {from} to {to} so that I am there by {arriveBy}?",
                (
                    "I have to be at {to} at {arriveBy} at the latest and start at {from}. Which "
                    "tram do I take?"
                ),
                "Plan a ride from {from} to {to}, arriving by {arriveBy}.",
            ],
            [("planTrip", "from to arriveBy", "plan a trip from {from} to {to}")],
        ),
        Requests(
            "place fault",
            [("tram 218", "broken door"), ("Mill Lane", "cracked bench")],
            [
                "I want to report a {fault} on {place}.",
                "There is a {fault} at {place}, please send someone.",
            ],
            [("reportFault", "place fault", "report the {fault}")],
        ),
        Requests(
            "from to",
            [("Castle", "Airport"), ("Hospital", "North Gate")],
            [
                "Which trams leave {from} next, and how do I get from there to {to}?",
                "I'm at {from}. Show me the next departures and a way to {to}.",
            ],
            [
                ("nextDepartures", "stop=from", "list the next trams at {from}"),
                ("planTrip", "from to", "plan a trip to {to}"),
            ],
        ),
    ],
)

GLASSHOUSE = Tool(
    "Glasshouse",
    "Sensors and controls of a greenhouse with numbered bays.",
    [
        Function(
            "readSensor",
            "Read one value in a bay.",
            {
                "bay": "Required. integer. Number of the bay.",
                "sensor": "Required. string. One of: [temperature, humidity, light].",
            },
            "Object{value, unit}",
        ),
        Function(
            "openWindows",
            "Open the windows of a bay.",
            {
                "bay": "Required. integer. Number of the bay.",
                "percent": "Required. integer. 0 is shut, 100 wide open.",
            },
            "Object{percent}",
        ),
        Function(
            "water",
            "Water a bay.",
            {
                "bay": "Required. integer. Number of the bay.",
                "minutes": "Required. integer. How long.",
            },
            "Object{litres}",
        ),
    ],
    [
        Requests(
            "bay sensor thing",
            [
                (3, "temperature", "How warm is it"),
                (7, "humidity", "How damp is the air"),
                (2, "light", "How bright is it"),
            ],
            [
                "{thing} in bay {bay} right now?",
                "{thing} in bay {bay}? The leaves look odd.",
                "I'm off to the market. {thing} in bay number {bay}?",
            ],
            [("readSensor", "bay sensor", "read the {sensor} in bay {bay}")],
        ),
        Requests(
            "bay percent",
            [(5, 40), (1, 75), (8, 100)],
            [
                "Please open the windows of bay {bay} to {percent} percent.",
                "It's stuffy in bay {bay}. Set its windows to {percent} %.",
                "I need fresh air in bay {bay}, windows at {percent} percent.",
            ],
            [("openWindows", "bay percent", "open the windows of bay {bay}")],
        ),
        Requests(
            "bay minutes",
            [(4, 12), (6, 20)],
            [
                "The tomatoes in bay {bay} are thirsty, give them water for {minutes} minutes.",
                "Water bay {bay} for {minutes} minutes.",
            ],
            [("water", "bay minutes", "water bay {bay}")],
        ),
        Requests(
            "bay percent minutes",
            [(9, 0, 15), (10, 0, 8)],
            [
                "Shut the windows of bay {bay} and then water it for {minutes} minutes.",
                (
                    "Close all windows in bay {bay}, and let the water run there for {minutes} "
                    "minutes."
                ),
            ],
            [
                ("openWindows", "bay percent", "shut the windows of bay {bay}"),
                ("water", "bay minutes", "water bay {bay}"),
            ],
        ),
    ],
)

KITCHEN = Tool(
    "Pantry Chef",
    "Recipes and kitchen arithmetic.",
    [
        Function(
            "findRecipes",
            "Find recipes for what is at hand.",
            {
                "ingredients": "Required. Array[string]. What to cook with.",
                "diet": "string. One of: [vegetarian, vegan, any].",
            },
            "Array[Object{recipeId, title}]",
        ),
        Function(
            "getRecipe",
            "Show a recipe.",
            {
                "recipeId": "Required. integer. Id of the recipe.",
                "servings": "integer. How many people eat.",
            },
            "Object{title, steps}",
        ),
        Function(
            "convert",
            "Convert kitchen measures.",
            {
                "amount": "Required. number. How much.",
                "from": "Required. string. Unit given.",
                "to": "Required. string. Unit wanted.",
            },
            "Object{amount}",
        ),
    ],
    [
        Requests(
            "ingredients diet",
            [
                (["leeks", "rice", "eggs"], "vegetarian"),
                (["beans", "peppers"], "vegan"),
                (["pumpkin", "lentils"], "vegan"),
            ],
            [
                "I have {ingredients}. What {diet} dish can I make?",
                "We have {ingredients} left over and a {diet} guest tonight. Any recipes?",
                "Find me something {diet} with {ingredients}.",
            ],
            [("findRecipes", "ingredients diet", "find {diet} recipes with {ingredients}")],
        ),
        Requests(
            "recipeId servings",
            [(318, 4), (77, 6), (1204, 2)],
            [
                "Show me recipe {recipeId} for {servings} people.",
                "How do I cook recipe number {recipeId}? We are {servings} at table.",
                "Please open recipe {recipeId} and scale it to {servings} servings.",
            ],
            [("getRecipe", "recipeId servings", "show recipe {recipeId} for {servings} people")],
        ),
        Requests(
            "amount from to",
            [(2.5, "cups", "grams"), (6, "ounces", "grams")],
            [
                "How much is {amount} {from} of flour in {to}?",
                "The book says {amount} {from}. What is that in {to}?",
            ],
            [("convert", "amount from to", "convert {amount} {from} to {to}")],
        ),
        Requests(
            "recipeId amount from to",
            [(452, 3, "pints", "litres"), (96, 1.5, "pounds", "kilograms")],
            [
                "Get me recipe {recipeId}, and tell me what {amount} {from} are in {to}.",
                "I want to cook recipe {recipeId}, but what are {amount} {from} in {to}?",
            ],
            [
                ("getRecipe", "recipeId", "show recipe {recipeId}"),
                ("convert", "amount from to", "convert {amount} {from} to {to}"),
            ],
        ),
    ],
)

MUSEUM = Tool(
    "Clockmakers' Museum",
    "Visits to a museum of clocks.",
    [
        Function(
            "listExhibitions",
            "List the exhibitions of a month.",
            {"month": "Required. string. Name of the month."},
            "Array[Object{title, room}]",
        ),
        Function(
            "buyTickets",
            "Buy tickets for a day.",
            {
                "date": "Required. string. Day, such as 3 May.",
                "adults": "Required. integer. Adults.",
                "children": "integer. Children.",
            },
            "Object{ticketId, price}",
        ),
        Function(
            "bookGuide",
            "Book a guided tour.",
            {
                "date": "Required. string. Day, such as 3 May.",
                "language": "string. Language of the tour.",
            },
            "Object{guide, hour}",
        ),
    ],
    [
        Requests(
            "month",
            [("March",), ("August",), ("November",)],
            [
                "What can be seen at the museum in {month}?",
                "My parents come to town in {month}. Which exhibitions will be open?",
                "List your {month} exhibitions, please.",
            ],
            [("listExhibitions", "month", "list the exhibitions in {month}")],
        ),
        Requests(
            "date adults children",
            [("14 May", 2, 3), ("2 July", 1, 4), ("21 October", 4, 2)],
            [
                "We need tickets for {adults} adults and {children} children on {date}.",
                "Please book entry on {date}: adults {adults}, children {children}.",
                (
                    "On {date} we come with {children} children and {adults} adults. Buy the "
                    "tickets, please."
                ),
            ],
            [("buyTickets", "date adults children", "buy tickets for {date}")],
        ),
        Requests(
            "date language",
            [("9 June", "Italian"), ("17 September", "Polish")],
            [
                "I would like a tour in {language} on {date}.",
                "Is there a guide who speaks {language}? Book one for {date}.",
            ],
            [("bookGuide", "date language", "book a tour in {language}")],
        ),
        Requests(
            "date adults",
            [("11 April", 5), ("5 December", 8)],
            [
                (
                    "We are {adults} adults and visit on {date}. Get us tickets and a guided tour"
                    " that day."
                ),
                "Buy {adults} adult tickets for {date} and book a guide for us as well.",
            ],
            [
                ("buyTickets", "date adults", "buy {adults} tickets"),
                ("bookGuide", "date", "book a guided tour"),
            ],
        ),
    ],
)

WEATHER = Tool(
    "Hillside Weather",
    "Readings and warnings of small weather stations.",
    [
        Function(
            "currentWeather",
            "Latest readings of a station.",
            {"station": "Required. string. Name of the station."},
            "Object{temperature, wind, rain}",
        ),
        Function(
            "forecast",
            "Forecast for a station.",
            {
                "station": "Required. string. Name of the station.",
                "days": "integer. How many days ahead.",
            },
            "Array[Object{day, sky, low, high}]",
        ),
        Function(
            "setWarning",
            "Send a message when a reading crosses a limit.",
            {
                "station": "Required. string. Name of the station.",
                "reading": "Required. string. One of: [temperature, wind, rain].",
                "limit": "Required. number. The limit.",
            },
            "Object{warningId}",
        ),
    ],
    [
        Requests(
            "station",
            [("Raven Ridge",), ("Lower Meadow",), ("Kestrel Point",)],
            [
                "Is it raining at {station} at the moment?",
                "What is the weather like at {station} now?",
                "Can I hang out the washing? Check the readings of {station}.",
            ],
            [("currentWeather", "station", "get the readings of {station}")],
        ),
        Requests(
            "station days",
            [("Birch Hollow", 5), ("Stone Pass", 3), ("Lake Cabin", 7)],
            [
                "What will the next {days} days bring at {station}?",
                "We hike near {station} soon. Give me the forecast for {days} days.",
                "Forecast for {station}, {days} days ahead, please.",
            ],
            [("forecast", "station days", "get the forecast for {station}")],
        ),
        Requests(
            "station reading limit",
            [("Orchard", "temperature", -2), ("Fox Hill", "wind", 60)],
            [
                "Warn me when the {reading} at {station} reaches {limit}.",
                "I want a message if the {reading} at {station} passes {limit}.",
            ],
            [("setWarning", "station reading limit", "set a {reading} warning for {station}")],
        ),
        Requests(
            "station days reading limit",
            [("Vineyard", 4, "rain", 25), ("Sheep Farm", 2, "temperature", 30.5)],
            [
                (
                    "Show me {days} days of forecast for {station}, and warn me there about "
                    "{reading} at {limit}."
                ),
                (
                    "Give me the {days} day forecast of {station} and set a {reading} warning "
                    "there at {limit}."
                ),
            ],
            [
                ("forecast", "station days", "get the forecast"),
                ("setWarning", "station reading limit", "set a {reading} warning"),
            ],
        ),
    ],
)

PARCELS = Tool(
    "Swift Parcel",
    "Sending and following parcels.",
    [
        Function(
            "trackParcel",
            "Where a parcel is.",
            {"parcelId": "Required. string. Id on the label."},
            "Object{place, time}",
        ),
        Function(
            "quotePostage",
            "Price of a parcel.",
            {
                "country": "Required. string. Where it goes.",
                "kilograms": "Required. number. Its weight.",
                "insured": "boolean. true to insure it.",
            },
            "Object{price, days}",
        ),
        Function(
            "orderPickup",
            "Have parcels fetched.",
            {
                "address": "Required. string. Street and number.",
                "date": "Required. string. Day, such as 3 May.",
            },
            "Object{pickupId, hours}",
        ),
    ],
    [
        Requests(
            "parcelId",
            [("SP81204",), ("SP30977",), ("SP66451",)],
            [
                "Where is my parcel {parcelId}?",
                "I've been waiting for {parcelId} since Monday. Can you look it up?",
                "The label says {parcelId}. Has it left the depot yet?",
            ],
            [("trackParcel", "parcelId", "track parcel {parcelId}")],
        ),
        Requests(
            "country kilograms insured",
            [("Norway", 3.5, True), ("Peru", 12, True), ("Japan", 0.8, True)],
            [
                "What does it cost to send {kilograms} kg to {country}, with insurance?",
                (
                    "I want to post a {kilograms} kilogram parcel to {country} and have it "
                    "insured. How much is it?"
                ),
                "Price for an insured parcel to {country}, weight {kilograms} kg?",
            ],
            [
                (
                    "quotePostage",
                    "country kilograms insured",
                    "get the price of a parcel to {country}",
                )
            ],
        ),
        Requests(
            "address date",
            [("18 Tanner Street", "27 March"), ("5 Well Court", "13 August")],
            [
                "Please fetch my parcels at {address} on {date}.",
                "Can someone pick up two boxes on {date}? I live at {address}.",
            ],
            [("orderPickup", "address date", "order a pickup at {address}")],
        ),
        Requests(
            "country kilograms address date",
            [("Kenya", 6, "70 Elm Row", "4 November"), ("Chile", 4, "33 Quay Road", "19 February")],
            [
                "How much is {kilograms} kg to {country}? And fetch it at {address} on {date}.",
                (
                    "Tell me the price for {kilograms} kg to {country}, and pick the parcel up at"
                    " {address} on {date}."
                ),
            ],
            [
                ("quotePostage", "country kilograms", "get the price"),
                ("orderPickup", "address date", "order a pickup"),
            ],
        ),
    ],
)

BIKES = Tool(
    "City Bikes",
    "Bicycles for hire by the hour.",
    [
        Function(
            "findBikes",
            "Free bicycles near a place.",
            {
                "place": "Required. string. Street or square.",
                "kind": "string. One of: [city, electric, cargo].",
            },
            "Array[Object{bikeId, place}]",
        ),
        Function(
            "rentBike",
            "Rent a bicycle.",
            {
                "bikeId": "Required. integer. Number on the frame.",
                "hours": "Required. integer. How long.",
            },
            "Object{code, price}",
        ),
        Function(
            "reportBike",
            "Report a damaged bicycle.",
            {
                "bikeId": "Required. integer. Number on the frame.",
                "damage": "Required. string. What is damaged.",
            },
            "Object{caseId}",
        ),
    ],
    [
        Requests(
            "place kind",
            [("Station Road", "cargo"), ("Rose Square", "electric"), ("Castle Hill", "city")],
            [
                "I need a {kind} bike near {place}.",
                "Are there any {kind} bikes around {place}?",
                "Where is the closest free {kind} bike? I'm at {place}.",
            ],
            [("findBikes", "place kind", "find {kind} bikes near {place}")],
        ),
        Requests(
            "bikeId hours",
            [(5512, 3), (2087, 6), (9340, 2)],
            [
                "Rent bike {bikeId} to me for {hours} hours.",
                "I'm standing next to number {bikeId} and would like it for {hours} hours.",
                "{hours} hours with bike {bikeId}, please.",
            ],
            [("rentBike", "bikeId hours", "rent bike {bikeId} for {hours} hours")],
        ),
        Requests(
            "bikeId damage",
            [(7261, "flat tyre"), (1178, "loose saddle")],
            [
                "Bike {bikeId} has a {damage}.",
                "Someone should look at {bikeId}, it has a {damage}.",
            ],
            [("reportBike", "bikeId damage", "report the {damage}")],
        ),
        Requests(
            "bikeId damage place",
            [(4405, "bent wheel", "Mint Street"), (3829, "broken bell", "Park Gate")],
            [
                "{bikeId} has a {damage}, please note it, and find me another bike near {place}.",
                "Report a {damage} on bike {bikeId}. Which other bikes are near {place}?",
            ],
            [
                ("reportBike", "bikeId damage", "report the {damage}"),
                ("findBikes", "place", "find bikes near {place}"),
            ],
        ),
    ],
)

SPORTS = Tool(
    "Northside Sports Hall",
    "Courts of a sports hall.",
    [
        Function(
            "freeCourts",
            "Courts that are free on a day.",
            {
                "sport": "Required. string. One of: [tennis, squash, badminton].",
                "date": "Required. string. Day, such as 3 May.",
            },
            "Array[Object{court, hours}]",
        ),
        Function(
            "bookCourt",
            "Book a court for an hour.",
            {
                "court": "Required. string. Name of the court.",
                "date": "Required. string. Day, such as 3 May.",
                "hour": "Required. integer. 8 to 21.",
            },
            "Object{bookingId}",
        ),
        Function(
            "cancelBooking",
            "Cancel a booking.",
            {"bookingId": "Required. string. Id of the booking."},
            "Object{refund}",
        ),
    ],
    [
        Requests(
            "sport date",
            [("squash", "8 March"), ("badminton", "30 June"), ("tennis", "12 September")],
            [
                "Is there a free {sport} court on {date}?",
                "We want to play {sport} on {date}. What is free?",
                "Show me the open {sport} courts for {date}.",
            ],
            [("freeCourts", "sport date", "find free {sport} courts")],
        ),
        Requests(
            "court date hour",
            [("T2", "3 April", 18), ("S1", "25 May", 9), ("B4", "16 October", 20)],
            [
                "Book court {court} on {date} at {hour} o'clock.",
                "I'd like {court} on {date}, from {hour} o'clock.",
                "Can I have court {court} at {hour} o'clock on {date}?",
            ],
            [("bookCourt", "court date hour", "book court {court}")],
        ),
        Requests(
            "bookingId",
            [("NS-2290",), ("NS-8136",)],
            [
                "I hurt my knee and must cancel booking {bookingId}.",
                "Please cancel {bookingId} for me.",
            ],
            [("cancelBooking", "bookingId", "cancel booking {bookingId}")],
        ),
        Requests(
            "bookingId sport date",
            [("NS-5074", "tennis", "19 July"), ("NS-3618", "squash", "28 August")],
            [
                "Cancel {bookingId}, and show me the free {sport} courts for {date} instead.",
                "I can't use {bookingId}. Drop it, and look for an open {sport} court on {date}.",
            ],
            [
                ("cancelBooking", "bookingId", "cancel the old booking"),
                ("freeCourts", "sport date", "find free {sport} courts"),
            ],
        ),
    ],
)

WORDS = Tool(
    "Word Workshop",
    "A dictionary for writers and learners.",
    [
        Function(
            "translate",
            "Translate a word.",
            {
                "word": "Required. string. English word.",
                "language": "Required. string. Language wanted.",
            },
            "Array[string]",
        ),
        Function(
            "rhymes",
            "Words that rhyme.",
            {
                "word": "Required. string. English word.",
                "syllables": "integer. Only words of this length.",
            },
            "Array[string]",
        ),
        Function(
            "related",
            "Words of like or opposite meaning.",
            {
                "word": "Required. string. English word.",
                "relation": "Required. string. One of: [synonym, antonym].",
            },
            "Array[string]",
        ),
    ],
    [
        Requests(
            "word language",
            [("lighthouse", "Danish"), ("thunder", "Welsh"), ("bread", "Hungarian")],
            [
                "What is the {language} word for {word}?",
                'How do you say "{word}" in {language}?',
                "I'm learning {language}. Please translate {word}.",
            ],
            [("translate", "word language", "translate {word} into {language}")],
        ),
        Requests(
            "word syllables",
            [("river", 2), ("station", 3), ("moon", 1)],
            [
                "Which words of {syllables} syllables rhyme with {word}?",
                "My poem needs a rhyme for {word}, with exactly {syllables} syllables.",
                "Give me rhymes for {word}. Syllables: {syllables}.",
            ],
            [("rhymes", "word syllables", "find rhymes for {word}")],
        ),
        Requests(
            "word relation ask",
            [("brave", "antonym", "the opposite of"), ("quick", "synonym", "another word for")],
            ["What is {ask} {word}?", "I need {ask} {word} in my essay."],
            [("related", "word relation", "find {ask} {word}")],
        ),
        Requests(
            "word language relation",
            [("gentle", "Greek", "synonym"), ("patient", "Finnish", "synonym")],
            [
                "Translate {word} into {language}, and give me a {relation} of it in English.",
                "I'd like {word} in {language} and also an English {relation} of it.",
            ],
            [
                ("translate", "word language", "translate {word}"),
                ("related", "word relation", "find a {relation} of {word}"),
            ],
        ),
    ],
)

VET = Tool(
    "Willow Vet",
    "Appointments and records of an animal practice.",
    [
        Function(
            "bookVisit",
            "Book a visit.",
            {
                "pet": "Required. string. Name of the animal.",
                "date": "Required. string. Day, such as 3 May.",
                "reason": "string. Why it comes.",
            },
            "Object{visitId, hour}",
        ),
        Function(
            "listVaccinations",
            "Vaccinations of an animal.",
            {"pet": "Required. string. Name of the animal."},
            "Array[Object{vaccine, date}]",
        ),
        Function(
            "orderFood",
            "Order special food.",
            {
                "product": "Required. string. Name of the food.",
                "bags": "Required. integer. How many.",
                "deliver": "boolean. true to bring it home.",
            },
            "Object{orderId, price}",
        ),
    ],
    [
        Requests(
            "pet date reason",
            [
                ("Biscuit", "26 February", "limping"),
                ("Momo", "7 July", "itchy ears"),
                ("Captain", "18 November", "check-up"),
            ],
            [
                "{pet} needs an appointment on {date}, the reason is {reason}.",
                "Can we bring {pet} on {date}? Reason: {reason}.",
                "Please book {pet} in for {date}; {reason}.",
            ],
            [("bookVisit", "pet date reason", "book a visit for {pet}")],
        ),
        Requests(
            "pet",
            [("Juniper",), ("Waffles",), ("Otto",)],
            [
                "Which shots has {pet} had?",
                "We are going abroad with {pet}. Are the vaccinations up to date?",
                "Show me the vaccination record of {pet}.",
            ],
            [("listVaccinations", "pet", "list the vaccinations of {pet}")],
        ),
        Requests(
            "product bags deliver",
            [("Kidney Care", 2, True), ("Puppy Start", 5, True)],
            [
                "I'd like {bags} bags of {product}, delivered to my house.",
                "Order {bags} bags of {product} and bring them to us, please.",
            ],
            [("orderFood", "product bags deliver", "order {bags} bags of {product}")],
        ),
        Requests(
            "pet date product bags",
            [("Pepper", "29 April", "Slim Cat", 3), ("Hugo", "3 September", "Joint Plus", 4)],
            [
                "Book a visit for {pet} on {date}, and order {bags} bags of {product}.",
                "{pet} should be seen on {date}. I also need {bags} bags of {product}.",
            ],
            [
                ("bookVisit", "pet date", "book a visit for {pet}"),
                ("orderFood", "product bags", "order {product}"),
            ],
        ),
    ],
)

CINEMA = Tool(
    "Lantern Cinema",
    "Programme and seats of a small cinema.",
    [
        Function(
            "listFilms",
            "Films on a day.",
            {"date": "Required. string. Day, such as 3 May.", "genre": "string. Only this genre."},
            "Array[Object{film, hour}]",
        ),
        Function(
            "reserveSeats",
            "Reserve seats.",
            {
                "film": "Required. string. Title of the film.",
                "seats": "Required. integer. How many.",
                "row": "string. Letter of the row.",
            },
            "Object{code, price}",
        ),
    ],
    [
        Requests(
            "date genre",
            [("20 March", "comedy"), ("11 June", "western"), ("30 October", "horror")],
            [
                "Is there a {genre} film on {date}?",
                "We'd like to see a {genre} on {date}. What is on?",
                "Which {genre} films do you show on {date}?",
            ],
            [("listFilms", "date genre", "list the {genre} films")],
        ),
        Requests(
            "film seats row",
            [("Paper Moons", 4, "F"), ("The Long Orchard", 2, "C")],
            [
                "Please keep {seats} seats for {film}, in row {row}.",
                "I want to watch {film}: {seats} seats in row {row}.",
            ],
            [("reserveSeats", "film seats row", "reserve seats for {film}")],
        ),
        Requests(
            "date film seats",
            [("15 January", "Salt Road", 3), ("9 December", "Winter Choir", 6)],
            [
                "Reserve {seats} seats for {film}, and tell me what else you show on {date}.",
                "I'd like {seats} tickets for {film}. What other films are on that day, {date}?",
            ],
            [
                ("reserveSeats", "film seats", "reserve seats for {film}"),
                ("listFilms", "date", "list the films of {date}"),
            ],
        ),
    ],
)

TOOLSHED = Tool(
    "Borrow Shed",
    "A club that lends tools and repairs things.",
    [
        Function(
            "findTool",
            "Find a tool to borrow.",
            {
                "tool": "Required. string. What is needed.",
                "powered": "boolean. true for electric tools only.",
            },
            "Array[Object{toolId, shelf}]",
        ),
        Function(
            "borrow",
            "Borrow a tool.",
            {
                "toolId": "Required. integer. Id of the tool.",
                "days": "Required. integer. How long.",
            },
            "Object{due}",
        ),
        Function(
            "bookRepair",
            "Have something repaired.",
            {"item": "Required. string. What is broken.", "weekday": "string. Name of the day."},
            "Object{helper, hour}",
        ),
    ],
    [
        Requests(
            "tool powered",
            [("drill", True), ("hedge trimmer", True), ("sander", True)],
            [
                "Do you have an electric {tool}?",
                "I'm looking for a {tool}, but only an electric one.",
                "Which electric {tool} could I borrow?",
            ],
            [("findTool", "tool powered", "find an electric {tool}")],
        ),
        Requests(
            "toolId days",
            [(88, 5), (142, 3)],
            [
                "I'll take tool {toolId} for {days} days.",
                "Lend me number {toolId}, please; I need it {days} days.",
            ],
            [("borrow", "toolId days", "borrow tool {toolId}")],
        ),
        Requests(
            "item weekday toolId days",
            [("toaster", "Thursday", 61, 2), ("radio", "Saturday", 217, 4)],
            [
                (
                    "My {item} is broken, can someone look at it on {weekday}? And I want tool "
                    "{toolId} for {days} days."
                ),
                (
                    "Book a repair of my {item} on {weekday}, and lend me tool {toolId} for "
                    "{days} days."
                ),
            ],
            [
                ("bookRepair", "item weekday", "book a repair of the {item}"),
                ("borrow", "toolId days", "borrow tool {toolId}"),
            ],
        ),
    ],
)

STARS = Tool(
    "Night Sky",
    "What an observatory knows about the sky.",
    [
        Function(
            "riseAndSet",
            "When an object rises and sets.",
            {
                "object": "Required. string. Planet, star or moon.",
                "town": "Required. string. Where one looks.",
                "date": "string. Day, such as 3 May.",
            },
            "Object{rise, set}",
        ),
        Function(
            "describeObject",
            "Facts about an object.",
            {"object": "Required. string. Planet, star or moon."},
            "Object{kind, distance, size}",
        ),
        Function(
            "reserveTelescope",
            "Reserve a telescope.",
            {
                "telescope": "Required. string. One of: [refractor, reflector, radio].",
                "date": "Required. string. Day, such as 3 May.",
            },
            "Object{code}",
        ),
    ],
    [
        Requests(
            "object town date",
            [
                ("Saturn", "Bergen", "21 August"),
                ("Venus", "Lisbon", "3 May"),
                ("Sirius", "Quito", "9 January"),
            ],
            [
                "When does {object} rise in {town} on {date}?",
                "I'm in {town} on {date}. From when on can I see {object}?",
                "At what time does {object} set over {town} on {date}?",
            ],
            [("riseAndSet", "object town date", "get the times of {object}")],
        ),
        Requests(
            "object",
            [("Europa",), ("Vega",)],
            ["How far away is {object}?", "Tell me something about {object}."],
            [("describeObject", "object", "get facts about {object}")],
        ),
        Requests(
            "telescope date object",
            [("reflector", "24 September", "Neptune"), ("refractor", "16 March", "Mars")],
            [
                "I'd like the {telescope} on {date}, and some facts about {object}.",
                "Reserve the {telescope} for {date}. How big is {object}, by the way?",
            ],
            [
                ("reserveTelescope", "telescope date", "reserve the {telescope}"),
                ("describeObject", "object", "get facts about {object}"),
            ],
        ),
    ],
)

HARBOUR = Tool(
    "Gull Harbour",
    "Berths and tides of a small harbour.",
    [
        Function(
            "getTides",
            "High and low water on a day.",
            {"date": "Required. string. Day, such as 3 May."},
            "Array[Object{time, metres}]",
        ),
        Function(
            "findBerth",
            "Find a free berth.",
            {
                "length": "Required. number. Length of the boat in metres.",
                "power": "boolean. true for berths with electricity.",
            },
            "Array[Object{berth, price}]",
        ),
        Function(
            "bookBerth",
            "Book a berth.",
            {
                "berth": "Required. string. Name of the berth.",
                "boat": "Required. string. Name of the boat.",
                "nights": "integer. How many nights.",
            },
            "Object{code}",
        ),
    ],
    [
        Requests(
            "date",
            [("18 June",), ("22 April",)],
            ["When is high water on {date}?", "We sail on {date}. What are the tides that day?"],
            [("getTides", "date", "get the tides of {date}")],
        ),
        Requests(
            "length power",
            [(9.5, True), (12, True)],
            [
                "My boat is {length} metres long and needs electricity. Where can it lie?",
                "Do you have a berth with electricity for {length} metres?",
            ],
            [("findBerth", "length power", "find a berth for {length} metres")],
        ),
        Requests(
            "berth boat nights",
            [("A7", "Petrel", 3), ("C12", "Blue Hare", 5)],
            [
                "Book berth {berth} for the {boat}, {nights} nights.",
                "The {boat} would like to stay {nights} nights at {berth}.",
            ],
            [("bookBerth", "berth boat nights", "book berth {berth} for the {boat}")],
        ),
        Requests(
            "date berth boat",
            [("25 July", "B3", "Marigold"), ("6 September", "D1", "Old Tom")],
            [
                "Give me the tides for {date} and book {berth} for the {boat}.",
                "What are the tides on {date}? We also want berth {berth}, for the {boat}.",
            ],
            [
                ("getTides", "date", "get the tides"),
                ("bookBerth", "berth boat", "book berth {berth}"),
            ],
        ),
    ],
)

BAKERY = Tool(
    "Crust Bakery",
    "Orders at a bakery.",
    [
        Function(
            "listBreads",
            "Breads on sale.",
            {"without": "string. Something that must not be in them."},
            "Array[Object{bread, price}]",
        ),
        Function(
            "orderBread",
            "Order bread.",
            {
                "bread": "Required. string. Kind of bread.",
                "loaves": "Required. integer. How many.",
                "sliced": "boolean. true for sliced bread.",
            },
            "Object{orderId, price}",
        ),
        Function(
            "orderCake",
            "Order a cake.",
            {
                "flavour": "Required. string. Flavour of the cake.",
                "text": "string. Words on the cake.",
            },
            "Object{orderId, price}",
        ),
        Function(
            "cancelOrder",
            "Cancel an order.",
            {"orderId": "Required. integer. Id of the order."},
            "Object{refund}",
        ),
    ],
    [
        Requests(
            "without",
            [("nuts",), ("eggs",)],
            [
                "Which breads are there without {without}?",
                "My son can't eat {without}. What bread can we buy?",
            ],
            [("listBreads", "without", "list breads without {without}")],
        ),
        Requests(
            "bread loaves sliced",
            [("rye", 3, True), ("spelt", 2, True)],
            [
                "{loaves} loaves of {bread}, sliced, please.",
                "Could you put {loaves} sliced {bread} loaves aside for me?",
            ],
            [("orderBread", "bread loaves sliced", "order {loaves} loaves of {bread} bread")],
        ),
        Requests(
            "flavour text",
            [("lemon", "Happy Birthday Ines"), ("chocolate", "Well done Kofi")],
            [
                "I need a {flavour} cake that says {text}.",
                'Please bake a {flavour} cake with "{text}" on it.',
            ],
            [("orderCake", "flavour text", "order a {flavour} cake")],
        ),
        Requests(
            "orderId flavour",
            [(6021, "walnut"), (3377, "cherry")],
            [
                "Cancel order {orderId}, I would rather have a {flavour} cake.",
                "I don't need order {orderId} any more. Make me a {flavour} cake instead.",
            ],
            [
                ("cancelOrder", "orderId", "cancel order {orderId}"),
                ("orderCake", "flavour", "order a {flavour} cake"),
            ],
        ),
    ],
)

CAMPSITE = Tool(
    "Pine Camp",
    "Pitches and outings of a campsite.",
    [
        Function(
            "bookPitch",
            "Book a pitch.",
            {
                "kind": "Required. string. One of: [tent, caravan, hut].",
                "arrival": "Required. string. Day, such as 3 May.",
                "nights": "Required. integer. How many.",
            },
            "Object{pitch, price}",
        ),
        Function(
            "rentGear",
            "Rent equipment.",
            {"item": "Required. string. What to rent.", "count": "Required. integer. How many."},
            "Object{price}",
        ),
        Function(
            "joinOuting",
            "Sign up for an outing.",
            {
                "outing": "Required. string. Name of the outing.",
                "people": "Required. integer. How many come.",
            },
            "Object{meetingPlace, hour}",
        ),
    ],
    [
        Requests(
            "kind arrival nights",
            [("hut", "11 July", 6), ("caravan", "2 August", 4)],
            [
                "We'd like a {kind} from {arrival} on, for {nights} nights.",
                "Have you a place for our {kind}? We arrive on {arrival} and stay {nights} nights.",
            ],
            [("bookPitch", "kind arrival nights", "book a {kind} pitch")],
        ),
        Requests(
            "item count",
            [("canoes", 2), ("sleeping bags", 5)],
            [
                "Could we rent {count} {item}?",
                "We forgot to pack {item}. Have you got {count} of them for rent?",
            ],
            [("rentGear", "item count", "rent {count} {item}")],
        ),
        Requests(
            "outing people",
            [("Bat Walk", 3), ("Sunrise Climb", 7)],
            [
                "{people} of us want to come along on the {outing}.",
                "Sign us up for the {outing}, please, we are {people} people.",
            ],
            [("joinOuting", "outing people", "sign up for the {outing}")],
        ),
        Requests(
            "item count outing people",
            [("boats", 3, "Raft Day", 4), ("lamps", 5, "Night Walk", 6)],
            [
                "{people} places on the {outing}, please, and {count} {item} to rent.",
                "We want to rent {count} {item}, and sign {people} people up for the {outing}.",
            ],
            [
                ("rentGear", "item count", "rent {count} {item}"),
                ("joinOuting", "outing people", "join the {outing}"),
            ],
        ),
    ],
)

RADIO = Tool(
    "Attic Radio",
    "Archive and request line of a local radio station.",
    [
        Function(
            "searchShows",
            "Find shows in the archive.",
            {
                "subject": "Required. string. What the show is about.",
                "year": "integer. Year of the show.",
            },
            "Array[Object{showId, title}]",
        ),
        Function(
            "playShow",
            "Play a show.",
            {
                "showId": "Required. string. Id of the show.",
                "startMinute": "integer. Where to start.",
            },
            "Object{url}",
        ),
        Function(
            "requestSong",
            "Ask for a song on air.",
            {
                "song": "Required. string. Title of the song.",
                "greeting": "string. For whom it is played.",
            },
            "Object{hour}",
        ),
    ],
    [
        Requests(
            "subject year",
            [("steam engines", 1998), ("folk dance", 2011)],
            [
                "Was there a show about {subject} in {year}?",
                "I'm looking for something on {subject} that you sent in {year}.",
            ],
            [("searchShows", "subject year", "find shows about {subject}")],
        ),
        Requests(
            "showId startMinute",
            [("AR-550", 12), ("AR-1093", 35)],
            [
                "Play show {showId} from minute {startMinute}.",
                "I stopped listening to {showId} at minute {startMinute}. Go on from there.",
            ],
            [("playShow", "showId startMinute", "play show {showId} from minute {startMinute}")],
        ),
        Requests(
            "song greeting",
            [("Harvest Lights", "Aunt Rosa"), ("Two Rivers", "the night nurses")],
            ["Please play {song} for {greeting}.", "Could you put on {song}? It's for {greeting}."],
            [("requestSong", "song greeting", "request {song} for {greeting}")],
        ),
        Requests(
            "subject showId",
            [("jazz clubs", "AR-207"), ("bird song", "AR-864")],
            [
                "Play {showId}, and look for more shows about {subject}.",
                "I want to hear {showId}. Do you have other shows on {subject}?",
            ],
            [
                ("playShow", "showId", "play show {showId}"),
                ("searchShows", "subject", "find shows about {subject}"),
            ],
        ),
    ],
)

TOOLS = {
    "train": [
        LIBRARY,
        TRAMS,
        GLASSHOUSE,
        KITCHEN,
        MUSEUM,
        WEATHER,
        PARCELS,
        BIKES,
        SPORTS,
        WORDS,
        VET,
    ],
    "validation": [CINEMA, TOOLSHED, STARS],
    "test": [HARBOUR, BAKERY, CAMPSITE, RADIO],
}

if __name__ == "__main__":
    main()
