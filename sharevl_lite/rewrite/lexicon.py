"""Words that carry the meaning of a question, each group under one name.

Two questions that ask the same use the same groups; which word of a group is free. Groups are coarse where everyday
wording varies ("greatest", "largest") and fine where a swap changes the answer ("radius", "diameter"). English only.
"""

from __future__ import annotations

NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | {
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "seventy": "70",
    "eighty": "80",
    "ninety": "90",
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
    "billion": "1000000000",
    "half": "1/2",
    "twice": "2",
    "double": "2",
    "both": "2",
    "thrice": "3",
    "triple": "3",
    "dozen": "12",
}
"""What a word counts. `one` counts only where `facts` does not find it to be a fraction or a pronoun."""

UNITS: tuple[tuple[str, str, str], ...] = (
    ("mm", "mm", "millimet(?:er|re)s?"),
    ("cm", "cm", "centimet(?:er|re)s?"),
    ("km/h", "km/h|kph|kmh", "kilomet(?:er|re)s? (?:per|an) hour"),
    ("m/s", "m/s", "met(?:er|re)s? (?:per|a) second"),
    ("mph", "mph|mi/h", "miles? (?:per|an) hour"),
    ("km", "km", "kilomet(?:er|re)s?"),
    ("m", "m", "met(?:er|re)s?"),
    ("in", r"in(?=\.|\s*[,;:)?]|\s*$)", "inch(?:es)?"),
    ("ft", "ft", "foot|feet"),
    ("yd", "yd", "yards?"),
    ("mi", "mi", "miles?"),
    ("mg", "mg", "milligrams?"),
    ("kg", "kgs?", "kilograms?|kilos?"),
    ("g", "g", "grams?"),
    ("lb", "lbs?", "pounds?"),
    ("oz", "oz", "ounces?"),
    ("ml", "ml|mL", "millilit(?:er|re)s?"),
    ("l", "L", "lit(?:er|re)s?"),
    ("s", "s|secs?", "seconds"),
    ("min", "mins?", "minutes?"),
    ("h", "h|hrs?", "hours?"),
    ("degree", r"°|º|\^\s*\{?\s*\\circ\s*\}?|\\degree|deg", "degrees?"),
    ("percent", r"\\?%", "percent|per cent"),
    ("dollar", r"(?!)", "dollars?"),
    ("euro", "€", "euros?"),
    ("unit", r"(?!)", "units?"),
)
"""(name, abbreviations that stand after a number, words that stand anywhere)."""

_WORDS = """
remain: remain remains remaining
sum: sum total altogether combined
difference: difference differences differ
product: product multiply multiplied
quotient: quotient divided
ratio: ratio
mean: mean average
median: median medians
mode: mode
range: range
up: largest greatest biggest highest most maximum max tallest longest larger greater bigger higher more taller longer
up: exceed exceeds exceeding
down: smallest least lowest fewest minimum min shortest smaller less lower fewer shorter
steep: steepest steeper
flat: flattest flatter
old: oldest older
young: youngest younger
near: nearest closest closer nearer
far: farthest furthest farther further
not: not never without except excluding neither nor none no cannot
all: all every each
only: only
left: left leftmost
right: right rightmost
above: above over top upper topmost
below: below under beneath bottom underneath
inside: inside interior
outside: outside exterior
front: front
behind: behind back
before: before
after: after
first: first
second: second
third: third
last: last final
cw: clockwise
ccw: counterclockwise counter-clockwise anticlockwise anti-clockwise
rise: increase increases increased increasing rise rises rose grow grew growth gain gained
fall: decrease decreases decreased decreasing fall falls fell decline declines declined drop drops dropped loss
add: add added adding
subtract: subtract subtracted subtracting remove removed removing
even: even
odd: odd
prime: prime
positive: positive
negative: negative
horizontal: horizontal horizontally
vertical: vertical vertically
inner: inner
outer: outer
perimeter: perimeter perimeters
circumference: circumference
surface: surface
area: area areas
volume: volume volumes
radius: radius radii
diameter: diameter diameters
slope: slope gradient
chord: chord chords
tangent: tangent tangents tan
secant: secant secants
sine: sine sin
cosine: cosine cos
arc: arc arcs
sector: sector sectors
diagonal: diagonal diagonals
bisect: bisect bisects bisector bisectors bisected bisecting
midpoint: midpoint midpoints
altitude: altitude altitudes
slant: slant
hypotenuse: hypotenuse
circumcenter: circumcenter circumcentre
incenter: incenter incentre
centroid: centroid
parallel: parallel
perpendicular: perpendicular
congruent: congruent
similar: similar
inscribed: inscribed incircle
circumscribed: circumscribed circumcircle
acute: acute
obtuse: obtuse
supplementary: supplementary
complementary: complementary
isosceles: isosceles
equilateral: equilateral
scalene: scalene
regular: regular
shaded: shaded
unshaded: unshaded non-shaded nonshaded
circle: circle circles
semicircle: semicircle semicircles semi-circle semi-circles
square: square squares
rectangle: rectangle rectangles rectangular
parallelogram: parallelogram parallelograms
rhombus: rhombus rhombuses rhombi
trapezoid: trapezoid trapezoids trapezium trapeziums
kite: kite kites
pentagon: pentagon pentagons
hexagon: hexagon hexagons
octagon: octagon octagons
cylinder: cylinder cylinders
cone: cone cones
cube: cube cubes block blocks
sphere: sphere spheres ball balls
prism: prism prisms
pyramid: pyramid pyramids
small: small tiny little
big: big large
metal: metal metallic shiny
rubber: rubber matte
whole: whole integer
tenth: tenth tenths
hundredth: hundredth hundredths
thousandth: thousandth thousandths
male: men man boy boys male males
female: women woman girl girls female females
probability: probability chance
reason: prove why show
gray: gray grey
"""

PHRASES: tuple[tuple[str, str], ...] = (
    ("at_least", "at least|no fewer than|no less than|not less than|not fewer than"),
    ("at_most", "at most|no more than|not more than"),
    ("remain", "left over|(?:are|is|be|have|has|objects|things|items) left(?= ?[.?!,;]| ?$)|what is left"),
    ("right_angle", "right(?:-| )angled?|right (?:triangle|isosceles|prism|circular|cone|pyramid)"),
    ("sum", "in all"),
    ("difference", "how far apart"),
    ("not", r"\w+n['’]t|other than"),
    ("subtract", "tak(?:e|en|ing) away|taken"),
    ("add", "put in"),
    ("plain", "the one|in order|as shown|show[ns]? in|is shown|are shown"),
)
"""Several words with one meaning, found before single words; `plain` takes away what only looks meaningful."""

SIGNS: tuple[tuple[str, str], ...] = (
    ("parallel", r"∥|\\parallel(?![a-zA-Z])"),
    ("perpendicular", r"⊥|\\perp(?![a-zA-Z])"),
    ("congruent", r"≅|\\cong(?![a-zA-Z])"),
    ("similar", r"∼|\\sim(?![a-zA-Z])"),
    ("circle", r"⊙|\\odot(?![a-zA-Z])"),
    ("tangent", r"\\tan(?![a-zA-Z])"),
    ("sine", r"\\sin(?![a-zA-Z])"),
    ("cosine", r"\\cos(?![a-zA-Z])"),
    ("at_most", r"≤|\\leq?(?![a-zA-Z])"),
    ("at_least", r"≥|\\geq?(?![a-zA-Z])"),
    ("down", r"(?<!\w)<(?!\w+>)"),
    ("up", r"(?<=[\w\s])>(?=\s*[\w\\])"),
    ("plus", r"\+"),
    ("times", r"×|\\times(?![a-zA-Z])|\\cdot(?![a-zA-Z])"),
    ("root", r"√|\\sqrt(?![a-zA-Z])"),
)

_NAMED = "red blue green yellow purple cyan black white orange pink teal violet gold silver brown "
_NAMED += "january february march april june july august september october november december"


def _vocabulary() -> dict[str, str]:
    groups = {word: word for word in _NAMED.split()}
    for line in _WORDS.strip().splitlines():
        name, _, words = line.partition(": ")
        groups.update(dict.fromkeys(words.split(), name))
    return groups


GROUP_OF_WORD = _vocabulary()
"""Lower-case word to the name of its group."""

QUANTITIES = frozenset(
    "sum difference product quotient ratio mean median mode range perimeter circumference surface area volume radius "
    "diameter slope chord sine cosine arc hypotenuse altitude diagonal probability up down".split()
)
"""Groups that can be what is asked for."""
