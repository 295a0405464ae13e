"""What the ``llm`` annotator asks: the language, the rules, and demonstrations of ours."""

from collections.abc import Sequence

from pasta_ray.lang import Document, Text, parse

RULES = """\
You annotate answers in PASTA-LANG, a language that marks which parts of an answer can be written at the same time. A \
writer who meets a promise goes on at once, while somebody else writes the promised part without seeing anything that \
comes after the promise, nor any other part that is still being written.

The tags:
- <promise topic="T" tokens="10"/><async>PART</async> marks PART as one that is written separately. T is one to three \
words that say what PART is about; whoever writes PART sees only the text before it and T. Always write tokens="10"; \
the true length is filled in later.
- <sync/> is where the writer waits for all parts so far. Put it before text that needs them: a conclusion, a summary, \
a step that builds on them, anything that says "these" or "as above". No <sync/> is needed at the end of the answer.

The rules:
1. Copy the answer exactly, character by character: every space, line break, mark-up sign and mistake. Add nothing but \
tags, leave nothing out, correct nothing.
2. Mark parts that do not depend on each other: items of a list, sections, paragraphs or sentences about different \
things. Keep list markers such as "1." or "-" outside, before the promise. A part that needs another part is not \
marked, or a <sync/> stands between them.
3. Mark two parts or more, or none. Short parts (fewer than about ten words) are not worth a promise.
4. No tag stands inside a part. Topics differ from each other, and have no quotes, angle brackets or backslashes.
5. If nothing can be marked, give the answer back unchanged.
6. Reply with the annotated answer alone: no comment, no code fence."""

LIST = """\
A few habits help most people:

1.<promise topic="Fixed hours" tokens="10"/><async> **Keep fixed hours.** Go to bed and get up at the same time every \
day, at weekends too, so that your body knows what to expect.</async>
2.<promise topic="Dark room" tokens="10"/><async> **Darken the room.** Even a little light from a street lamp or a \
charger tells the brain that it is day; heavy curtains are worth their price.</async>
3.<promise topic="Late coffee" tokens="10"/><async> **No coffee after lunch.** Caffeine stays in the blood for many \
hours, and a cup at four is still half there at ten.</async><sync/>

Try them one at a time, and keep the ones that make a difference."""

SENTENCES = """\
<promise topic="Cats" tokens="10"/><async>Cats look after themselves for most of the day. They need food, a clean \
litter tray and a window to look out of, and they are content with a small flat as long as they may climb in it.\
</async> <promise topic="Dogs" tokens="10"/><async>Dogs want company and work. They have to be taken out several times \
a day in any weather, they must be trained, and most of them suffer when they are left alone for long.</async><sync/> \
So if you are away all day, take the cat."""

STEPS = """\
Mix flour, water, salt and yeast into a dough. Knead it until it is smooth, then cover it and let it rise until it has \
doubled. Shape the risen dough into a loaf, let it rest once more, and bake it in a hot oven."""

PARAGRAPHS = """\
Ada Lovelace (1815–1852) was an English mathematician who wrote what is often called the first computer program.

<promise topic="Childhood" tokens="10"/><async>Her mother had her taught mathematics from an early age, hoping that it \
would keep her from her father Lord Byron's temper.</async>

<promise topic="Analytical Engine" tokens="10"/><async>In 1843 she translated an article on Charles Babbage's \
Analytical Engine and added notes of her own, three times as long, with a method to compute Bernoulli numbers by \
machine.</async>

<promise topic="Programming language" tokens="10"/><async>The language Ada, made for the American defence department \
around 1980, bears her name.</async>"""

DEMONSTRATIONS: Sequence[tuple[str, str]] = (
    ("How can I sleep better?", LIST),
    ("Compare cats and dogs as pets.", SENTENCES),
    ("How is bread made?", STEPS),
    ("Who was Ada Lovelace?", PARAGRAPHS),
)


def task(instruction: str, answer: str) -> str:
    """The user's turn. The answer stands in it as text of the language: what looks like a tag is escaped."""
    return f"QUESTION\n{instruction}\n\nANSWER\n{Document((Text(answer),)).linear()}"


def opening_chat(instruction: str, answer: str) -> list[dict[str, str]]:
    """Rules, demonstrations, and the pair to annotate."""
    chat = [{"role": "system", "content": RULES}]
    for question, document in DEMONSTRATIONS:
        chat.append({"role": "user", "content": task(question, parse(document).text())})
        chat.append({"role": "assistant", "content": document})
    return [*chat, {"role": "user", "content": task(instruction, answer)}]
