#!/usr/bin/env python3
"""What KenLM's `lmplz` does, slowly: a model of the lines of stdin as an ARPA file, by the formula as it is written."""

import math
import sys

from tests.test_ngram import NaiveKneserNey


def main(arguments: list[str]) -> None:
    """Write the model; only the options that it needs are looked at."""
    order, size = (int(arguments[arguments.index(name) + 1]) for name in ("-o", "--vocab_pad"))
    lines = [[int(word) for word in line.split()] for line in sys.stdin]
    if not lines:
        sys.exit("no lines")
    naive = NaiveKneserNey(lines, order, size)
    print("\\data\\\n", f"{math.log10(naive.weight(()) / size)}\t<unk>\t0", sep="\n")
    for k, table in naive.counts.items():
        print(f"\n\\{k}-grams:")
        if k == 1:
            print(f"0\t<s>\t{math.log10(naive.weight((0,)))}")
        for gram in table:
            plain = tuple(0 if word == "<s>" else word for word in gram)
            p = naive.probability(plain[:-1], plain[-1])
            words = [*map(str, gram[:-1]), str(gram[-1]) if gram[-1] else "</s>"]
            back_off = naive.weight(plain) if k < order and gram[-1] else 1.0
            print(f"{math.log10(p)}\t{' '.join(words)}", *([] if k == order else [math.log10(back_off)]), sep="\t")
    print("\n\\end\\")


if __name__ == "__main__":
    main(sys.argv[1:])
