"""What the fake vendor says where it is asked for text that a person may read: Markdown, in all of its common forms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import cycle, islice

_TOKEN = re.compile(r"\S+\s*")

_MARKDOWN = """\
## The keeper of the stream

At the edge of a small town, where the **river** slows down, lived a keeper who wrote down *everything* that the water
said. Travellers came and went; some fell asleep in the middle of a sentence, and some lost the path in the rain. None
of them ever had to ask the river again.

1. Whatever the water says is written down first, and told afterwards.
2. Whoever comes late hears the story from its first word.
3. Whoever leaves in the middle goes on where they stopped.

> A story that is told once should be paid for once, said the keeper, and turned the page.

### How it is kept

Each line has a number, and a number never moves. So a reader need only remember one of them:

```python
position = 0
for line in story.after(position):
    print(line.text)
    position = line.end
```

| who | does | loses |
|---|---|---|
| a traveller | closes the book, opens it again | nothing |
| a ferryman | cuts the rope in midstream | nothing |
| the keeper | sleeps, and is followed by another | nothing |

### What the others say

- In the **café naïve** they order by the chapter, and never twice.
- In Αθήνα they read while the train is in a tunnel, and the signal with it.
- On the boats ⛵ they call it `stop`, and the river is silent within a second.

So the night went by. The lamp burned, the water spoke, and page after page was filled: with the names of towns, with
the price of salt, with what the heron had seen and would tell to no one else. In the morning the first reader came back,
said where she had stopped, and the keeper read on from that very word.

"""


def markdown_tokens(count: int) -> Iterator[str]:
    """So many tokens, in which words keep the white space behind them; the text begins anew when it is over."""
    return islice(cycle(_TOKEN.findall(_MARKDOWN)), count)
