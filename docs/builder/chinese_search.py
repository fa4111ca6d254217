"""The search of the Chinese site: Chinese text is searched by pairs of characters, other words as in English.

Sphinx's own search for Chinese (9.0.4) fails in the browser, which looks for a `ChineseStemmer`. It also cuts the pages
into words but not what a reader types.
"""

import re

from sphinx.search.en import SearchEnglish

PARTS = re.compile(r"[\u3400-\u9fff]+|[a-z0-9_]+", re.IGNORECASE)


class SearchChinese(SearchEnglish):
    """Split text in the same way for the index and in the browser."""

    lang = "zh"  # the name of the language stays English: Sphinx names the stemmer in the browser by it
    js_splitter_code = r"""
var splitQuery = (query) =>
  (query.match(/[\u3400-\u9fff]+|[a-z0-9_]+/gi) || []).flatMap((part) =>
    /^[a-z0-9_]/i.test(part) || part.length < 2 ? [part] : [...part.slice(1)].map((_, at) => part.slice(at, at + 2)));
"""

    def split(self, input: str) -> list[str]:
        """Return words of Latin letters, and each character and pair of characters of Chinese text."""
        found = []
        for part in PARTS.findall(input):
            if part[0] < "\u3400":
                found.append(part)
            else:
                found += [*part, *(part[at : at + 2] for at in range(len(part) - 1))]
        return found
