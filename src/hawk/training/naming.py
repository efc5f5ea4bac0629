"""What a picture shows, in plain words: package names, code points and file names -> label, synonyms, tags."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hawk.errors import HawkError
from hawk.training.sources import RawIcon, Source, read_member

MAX_NAME_WORDS = 9

# Emojibase subgroups whose pictures are letters, arrows, buttons or near-copies of one another.
DROPPED_SUBGROUPS = frozenset(
    {"family", "skin-tone", "hair-style", "transport-sign", "arrow", "zodiac", "av-symbol", "gender", "math",
     "currency", "keycap", "alphanum", "flag", "country-flag", "subdivision-flag", "religion", "person-symbol"}
)  # fmt: skip
KEPT_FROM_DROPPED = frozenset(
    {"no entry", "prohibited", "yin yang", "peace symbol", "atom symbol", "star of david", "infinity", "star and crescent",
     "heavy dollar sign", "footprints", "bust in silhouette", "pirate flag", "chequered flag", "rainbow flag",
     "white flag", "black flag", "triangular flag", "person with headscarf", "multiply", "plus", "fingerprint", "latin cross",
     "orthodox cross", "menorah", "om", "no smoking"}
)  # fmt: skip
DROPPED_LABELS = frozenset(
    {"wavy dash", "curly loop", "double curly loop", "part alternation mark", "copyright", "registered", "trade mark",
     "japanese symbol for beginner", "name badge", "medical symbol", "diamond with a dot", "radio button",
     "white medium square", "black medium square", "white medium-small square", "black medium-small square",
     "white small square", "black small square", "white square button", "black square button", "currency exchange",
     "exclamation question mark", "shibuya 109 department store"}
)  # fmt: skip
RENAMED = {
    "black large square": "black square",
    "white large square": "white square",
    "heavy dollar sign": "dollar sign",
    "large blue diamond": "blue diamond",
    "large orange diamond": "orange diamond",
    "latin cross": "cross",
    "multiply": "multiplication sign",
    "plus": "plus sign",
    "om": "om symbol",
    "soon arrow": "arrow",
    "hollow red circle": "red ring",
    "red triangle pointed up": "red triangle",
    "red triangle pointed down": "red triangle pointing down",
    "piata": "pinata",
    "o button (blood type)": "o button",
    "jack-o-lantern": "halloween pumpkin",
    "sun": "sun",
}
DROPPED_ICONIFY = re.compile(
    r"skin-tone|-(light|medium|dark|medium-light|medium-dark)$|^flag-for|^flag-|family|letter-|keycap|digit-|unknown-flag"
    r"|(^|-)(button|pound-symbol|arrow)$|regional-indicator"
)
# Icons of the flat-color set that show a thing rather than a brand, an arrow or an office abstraction.
FLAT_COLOR_KEPT = frozenset(
    """address-book alarm-clock area-chart automotive bar-chart binoculars biohazard biotech bookmark briefcase
    businessman businesswoman calculator calendar camcorder camera candle-sticks cell-phone checkmark clapperboard clock
    command-line comments compact-camera conference-call cursor customer-support dam database diploma-1 display document
    doughnut-chart electricity electronics empty-battery empty-trash engineering factory file filing-cabinet film
    film-reel flash-on flow-chart folder full-battery full-trash gallery globe graduation-cap headset high-battery home
    idea image-file info integrated-webcam key landscape library like line-chart link lock low-battery manager
    middle-battery money-transfer music news night-landscape no-video old-time-camera opened-folder package panorama
    phone photo-reel picture pie-chart plus podium-with-audience podium-with-speaker podium-without-speaker portrait-mode
    print puzzle radar-plot reading reading-ebook ruler safe scatter-plot search self-service-kiosk selfie services
    shipped shop sim-card smartphone-tablet speaker stack-of-photos statistics support todo-list touchscreen-smartphone
    tree-structure two-smartphones unlock video-call video-projector webcam cancel minus approval rating folder
    briefcase news reuse capacitor circuit dislike crystal-oscillator multiple-cameras night-portrait slr-back-side
    charge-battery missed-call end-call trash usb video-file audio-file""".split()
)
FLAT_COLOR_NAMES = {
    "automotive": "car", "biotech": "microscope", "candle-sticks": "candlestick chart", "cell-phone": "mobile phone",
    "command-line": "computer terminal", "comments": "speech bubbles", "conference-call": "group of people",
    "customer-support": "customer support agent", "diploma-1": "diploma", "display": "computer monitor",
    "electricity": "lightning bolt", "electronics": "microchip", "empty-trash": "empty trash can",
    "engineering": "engineer", "flash-on": "lightning bolt", "full-trash": "full trash can", "home": "house",
    "idea": "light bulb", "image-file": "image file", "integrated-webcam": "laptop webcam", "like": "thumbs up",
    "link": "chain link", "lock": "padlock", "music": "music note", "news": "newspaper", "photo-reel": "photo film",
    "print": "printer", "portrait-mode": "portrait of a person", "search": "magnifying glass", "services": "gears",
    "shipped": "delivery truck", "support": "wrench", "tree-structure": "tree diagram", "unlock": "open padlock",
    "cancel": "red cross mark", "approval": "approval seal", "rating": "star", "dislike": "thumbs down",
    "reading": "person reading a book", "reading-ebook": "person reading an ebook", "manager": "manager at a desk",
    "slr-back-side": "back of a camera", "reuse": "recycling symbol", "charge-battery": "charging battery",
    "missed-call": "missed phone call", "end-call": "red phone", "usb": "usb stick", "document": "document",
    "no-video": "crossed out video camera", "smartphone-tablet": "smartphone and tablet", "landscape": "landscape picture",
    "high-battery": "battery", "middle-battery": "half full battery", "statistics": "chart", "minus": "minus sign",
    "plus": "plus sign", "camcorder": "video camera", "touchscreen-smartphone": "smartphone", "globe": "globe",
    "phone": "telephone", "selfie": "person taking a selfie", "audio-file": "audio file", "multiple-cameras": "cameras",
}  # fmt: skip
OPENCLIPART_DROPPED = re.compile(
    r"computer/icons|computer/buttons|computer/folders|computer/diagrams|shapes/stars|signs_and_symbols|special/|aiga"
    r"|roadsigns|shapes/|games/cards|unsorted/duplicates|map_symbols|flowchart|religion|logo|tux"
)
# Words of openclipart file names that English emoji labels and tags lack.
CLIPART_WORDS = frozenset(
    """cartoon baby big small little old young simple silhouette contour outline guitar electric acoustic drum drums kit sax
    horse cow bull sheep pig dog cat kitten puppy duck goose owl eagle crow penguin puffin parrot swan toucan robin hen
    rooster fish shark whale dolphin salmon trout crab lobster shrimp octopus bug beetle bee ant spider fly wasp ladybug
    butterfly dragonfly damselfly mosquito grasshopper snail worm caterpillar dino dinosaur dragon troll unicorn
    elephant lion tiger leopard giraffe zebra hippo rhino gorilla monkey baboon camel bat mouse rat rabbit hare squirrel
    raccoon skunk fox wolf bear moose deer elk antelope seal walrus otter beaver hedgehog turtle tortoise frog toad snake
    lizard crocodile scorpion apple pear banana orange lemon lime grape grapes cherry cherries strawberry raspberry
    blueberry peach plum apricot pineapple melon watermelon kiwi mango coconut tomato potato carrot onion pepper corn pea
    mushroom bread bun baguette toast sandwich hamburger burger hot hotdog pizza cheese egg eggs bacon ham steak chicken
    turkey rice soup pie cake cupcake cookie donut muffin candy lollipop chocolate ice cream cone sundae glass bottle mug cup
    beer wine cocktail martini milk juice coffee tea teapot kettle water soda can plate bowl fork knife spoon pan pot
    car truck bus van taxi tractor train tram boat ship sailboat canoe yacht submarine plane airplane aircraft jet
    helicopter rocket balloon bike bicycle motorcycle scooter skateboard wheel tire house home cottage cabin hut barn
    castle church tower bridge lighthouse windmill door window chair table desk bed sofa couch lamp candle lantern bulb
    clock watch book books pencil pen paper scissors ruler brush paint palette key lock hammer saw screwdriver wrench
    pliers axe shovel rake bucket ladder sword shield bow arrow gun rifle pistol cannon bomb grenade knight king queen
    crown ring hat cap shirt shoe shoes boot boots sock glove dress skirt pants jeans coat jacket tie glasses bag purse
    umbrella tent backpack ball football soccer basketball baseball tennis golf racket bat skates ski snowboard trophy
    medal dice chess pawn rook bishop card puppet doll teddy kite yo top robot toy block bell gift present tree leaf
    flower rose tulip daisy sunflower lily orchid cactus bush grass palm pine oak branch sun moon star cloud rain snow
    snowman snowflake lightning rainbow earth globe planet saturn mountain hill volcano island beach hand foot eye ear nose
    mouth lips tooth heart skull bone brain face head man woman boy girl child witch ghost vampire pumpkin santa reindeer
    sleigh angel devil clown pirate ninja wizard piano violin cello trumpet trombone tuba flute clarinet harp accordion
    microphone radio television tv camera phone telephone computer monitor keyboard laptop printer mouse disk floppy
    cd cable plug battery magnet microscope telescope flask tube thermometer syringe pill stethoscope envelope stamp
    anchor chain rope net basket box barrel jar vase flowerpot broom mop vacuum iron oven stove fridge toaster blender
    frying onion rings drink stein chess and with of in on the a red green blue yellow black white pink brown gray grey
    purple smiling sleeping flying running sitting happy sad angry funny cute half sliced slice piece whole stack pile""".split()
)


@dataclass(frozen=True)
class Concept:
    """What an emoji shows: its label, synonyms and tags from emojibase, cleaned."""

    label: str
    synonyms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    kept: bool = True


@dataclass(frozen=True)
class Vocabulary:
    """Emojibase, looked up by code points and by squeezed name; and its English words."""

    by_hexcode: Mapping[str, Concept]
    by_name: Mapping[str, Concept]
    words: frozenset[str] = field(default=CLIPART_WORDS)


@dataclass(frozen=True)
class Naming:
    """The words for one picture; `name` is the label."""

    name: str
    synonyms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def squeeze(name: str) -> str:
    """Letters and digits only, lower case: "Person: Curly-hair" -> "personcurlyhair"."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", "and"))
    return re.sub(r"[^a-z0-9]", "", plain)


def clean_name(name: str) -> str:
    """Plain lower-case English from a label, slug or file name; "" if nothing usable is left.

    "person: curly hair" -> "person with curly hair"; "A button (blood type)" -> "a button"; "cat_face-2" -> "cat face".
    """
    text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore" if "’" not in name else "replace").decode()
    text = name.replace("’", "'").replace("“", "").replace("”", "").lower() if "’" in name else text.lower()
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = re.sub(r"\([^)]*\)", " ", text).replace("&", " and ")
    text = re.sub(r"^(person|man|woman): ", r"\1 with ", text)
    text = re.sub(r"[_:,.!/]+", " ", text)
    text = re.sub(r"(?<![a-z0-9])-|-(?![a-z0-9])", " ", text)
    text = re.sub(r"\b\d+\b|(?<=[a-z])\d+\b", " ", text)
    words = " ".join(text.split())
    if len(re.findall("[a-z]", words)) < 3 or len(words.split()) > MAX_NAME_WORDS:
        return ""
    return RENAMED.get(words, words)


def read_vocabulary(archive_path: Path) -> Vocabulary:
    """Labels, synonyms and tags out of the emojibase-data package."""
    emojis = json.loads(read_member(archive_path, "en/data.json"))
    groups = json.loads(read_member(archive_path, "meta/groups.json"))["subgroups"]
    shortcodes = {
        name: json.loads(read_member(archive_path, f"en/shortcodes/{name}.json"))
        for name in ("emojibase", "github", "joypixels", "iamcal", "emojibase-legacy")
    }
    by_hexcode: dict[str, Concept] = {}
    by_name: dict[str, Concept] = {}
    for emoji in emojis:
        by_hexcode[emoji["hexcode"]] = concept = _concept(emoji, groups, shortcodes)
        for skin in emoji.get("skins", ()):
            by_hexcode[skin["hexcode"]] = Concept(concept.label, kept=False)
        by_name.setdefault(squeeze(emoji["label"]), concept)
    for emoji in emojis:
        symbol = emoji["emoji"].replace("\ufe0f", "")
        if len(symbol) == 1:
            by_name.setdefault(squeeze(unicodedata.name(symbol, "unnamed")), by_hexcode[emoji["hexcode"]])
    for codes in shortcodes.values():
        for hexcode, names in codes.items():
            for name in [names] if isinstance(names, str) else names:
                if hexcode in by_hexcode:
                    by_name.setdefault(squeeze(name), by_hexcode[hexcode])
    words = {
        word
        for concept in by_hexcode.values()
        if concept.kept
        for name in (concept.label, *concept.tags)
        for word in name.split()
        if len(word) >= 3
    }
    return Vocabulary(by_hexcode | {k.replace("-FE0F", ""): v for k, v in by_hexcode.items()}, by_name, CLIPART_WORDS | words)


def _concept(emoji: Mapping[str, object], groups: Mapping[str, str], shortcodes: Mapping[str, Mapping[str, object]]) -> Concept:
    label, hexcode = str(emoji["label"]), str(emoji["hexcode"])
    subgroup = groups.get(str(emoji.get("subgroup", "")), "component")
    lowered = label.lower()
    if re.fullmatch(r"\w+ o’clock", lowered):
        return Concept(f"clock showing {clean_name(label)}", ("clock",), ("time",))
    dropped = (
        subgroup in DROPPED_SUBGROUPS | {"component"}
        or lowered in DROPPED_LABELS
        or lowered.endswith(("-thirty", "arrow"))
        or (": " in label and not re.match(r"(person|man|woman): ", lowered))
        or bool(re.search(r" facing right$|button", lowered))
    )
    synonyms = []
    for source in ("emojibase", "github"):
        codes = shortcodes[source].get(hexcode, [])
        for code in [codes] if isinstance(codes, str) else list(codes):  # type: ignore[call-overload]
            if not re.search(r"\d", code):
                synonyms.append(clean_name(code))
    name = clean_name(label)
    unique = [s for s in dict.fromkeys(synonyms) if s and s != name]
    tags = [clean_name(str(tag)) for tag in emoji.get("tags") or ()]  # type: ignore[attr-defined]
    kept = bool(name) and (not dropped or lowered in KEPT_FROM_DROPPED)
    return Concept(name, tuple(unique), tuple(tag for tag in dict.fromkeys(tags) if tag and tag != name), kept)


def name_icon(source: Source, icon: RawIcon, vocabulary: Vocabulary) -> Naming | None:
    """The words for a picture, or None where it is to be left out (skin tones, flags, letters, logos, no English name)."""
    if source.kind == "openclipart":
        return _name_clipart(icon, vocabulary)
    if source.name == "flat-color":
        if icon.slug not in FLAT_COLOR_KEPT:
            return None
        return Naming(FLAT_COLOR_NAMES.get(icon.slug, clean_name(icon.slug)))
    if DROPPED_ICONIFY.search(icon.slug) and icon.hexcode is None:
        return None
    slug = re.sub(r"-\d$", "", icon.slug)
    concept = vocabulary.by_hexcode.get(icon.hexcode or "") or vocabulary.by_name.get(squeeze(slug))
    if concept is None and source.name != "fxemoji" and source.kind == "iconify":
        name = clean_name(slug.removeprefix("person-").replace("-", " "))
        return Naming(name) if name else None
    if concept is None or not concept.kept:
        return None
    return Naming(concept.label, concept.synonyms, concept.tags)


def _name_clipart(icon: RawIcon, vocabulary: Vocabulary) -> Naming | None:
    if OPENCLIPART_DROPPED.search(f"{icon.folder}/{icon.slug}"):
        return None
    name = _english_start(clean_name(icon.title).split(), vocabulary) or _english_start(
        re.split(r"[_\-\s]+", icon.slug.lower()), vocabulary
    )
    if not name:
        return None
    folders = [clean_name(folder) for folder in icon.folder.split("/")]
    return Naming(name, tags=tuple(folder for folder in folders if folder and folder != "unsorted"))


def _english_start(words: Sequence[str], vocabulary: Vocabulary) -> str:
    """The leading English words of a file name: ["flying", "wasp", "gerald", "g"] -> "flying wasp"."""
    kept: list[str] = []
    for word in (re.sub(r"\d+$", "", word) for word in words):
        if word not in vocabulary.words:
            break
        kept.append(word)
    while kept and kept[-1] in {"and", "with", "of", "in", "on", "the", "a"}:
        kept.pop()
    return clean_name(" ".join(kept[:5]))


def require_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary itself, if it holds any concept."""
    if not vocabulary.by_hexcode:
        raise HawkError("emojibase-data holds no emoji: fetch it again")
    return vocabulary
