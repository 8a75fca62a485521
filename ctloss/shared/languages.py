"""Language codes: what looks like one, and which language it names."""

from __future__ import annotations

import re

# A language of two or three letters, then script, region and variants: pt-br, pt_BR, zh_Hant, zho_Hans, sr-Latn-RS.
CODE = re.compile("([a-z]{2,3})(?:[-_][A-Za-z0-9]+)*")
# Two or three letters that end the names of files which are no text in a language.
ENDINGS = frozenset(
    {
        *("gz", "bz", "xz", "zst", "zip", "tar", "tgz", "txt", "tsv", "csv", "tmp", "bak"),
        *("ids", "md", "py", "sh", "log", "out", "err", "yml", "xml", "pdf", "png", "npy", "pkl"),
    }
)
# XTREME names its files by two letters, Tatoeba's by three; cmn, pes and swh are its Chinese, Persian and Swahili.
_XTREME = """
    afr:af ara:ar aze:az ben:bn bul:bg cmn:zh deu:de ell:el eng:en est:et eus:eu fin:fi fra:fr heb:he hin:hi
    hun:hu ind:id ita:it jav:jv jpn:ja kat:ka kaz:kk kor:ko lit:lt mal:ml mar:mr nld:nl pes:fa pol:pl por:pt
    ron:ro rus:ru spa:es swh:sw tam:ta tel:te tgl:tl tha:th tur:tr ukr:uk urd:ur vie:vi
"""
XTREME_CODES = dict(pair.split(":") for pair in _XTREME.split())
_OTHERS = """
    bel:be bos:bs cat:ca ces:cs cym:cy dan:da epo:eo fas:fa gle:ga glg:gl guj:gu hrv:hr hye:hy isl:is kan:kn khm:km
    lao:lo lav:lv mkd:mk mon:mn msa:ms mya:my nep:ne nob:nb nor:no pan:pa sin:si slk:sk slv:sl som:so sqi:sq srp:sr
    swa:sw swe:sv uzb:uz yor:yo zho:zh zsm:ms
"""
TWO_LETTERS = XTREME_CODES | dict(pair.split(":") for pair in _OTHERS.split())


def is_language(code: str) -> bool:
    """Tells whether a string looks like a language code, possibly with script and region: fr, pt-br, zho_Hans."""
    match = CODE.fullmatch(code)
    return match is not None and match[1] not in ENDINGS


def primary(code: str) -> str:
    """Returns the language of a code without script and region, in two letters where it has them: zh of zho_Hans."""
    language = code.replace("_", "-").partition("-")[0].lower()
    return TWO_LETTERS.get(language, language)
