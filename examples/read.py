"""One URL, three readers: this one in Python, read.mjs with the npm package, read.sh with curl. `python examples/read.py URL`"""

import sys

from streamkeep.client import stream


def main(url: str) -> None:
    with stream(url) as response:
        for line in response.iter_lines():
            print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
