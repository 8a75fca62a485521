"""Language codes: what looks like one, and which language it names, as langcodes (ISO 639, BCP 47, CLDR) has it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

# A language of two or three letters, then script, region and variants: pt-br, pt_BR, zh_Hant, zho_Hans, sr-Latn-RS.
CODE = re.compile("([a-z]{2,3})(?:[-_][A-Za-z0-9]+)*")
# Endings and parts of files' names that are codes of small languages too, or may become one.
_ENDINGS = """
    ali all aln ann aux avi bak bat bib bin bpe cfg cnt css csv dat dev dic doc dup env err ids idx jar key len lex lib
    log lst map md mid new npy num odt old out pdf pid pkl png pos pot ppt py rar raw ref rej sav seg sgm sh spm src sum
    swo swp sys tag tar ted tex tgt tgz tmp tok trn tst tsv ttl txt url val vec wav wmt xls xml yml zip zst hyp
"""
ENDINGS = frozenset(_ENDINGS.split())
# XTREME names its files by two letters, Tatoeba's by three; cmn, pes and swh are its Chinese, Persian and Swahili.
_XTREME = """
    afr:af ara:ar aze:az ben:bn bul:bg cmn:zh deu:de ell:el eng:en est:et eus:eu fin:fi fra:fr heb:he hin:hi
    hun:hu ind:id ita:it jav:jv jpn:ja kat:ka kaz:kk kor:ko lit:lt mal:ml mar:mr nld:nl pes:fa pol:pl por:pt
    ron:ro rus:ru spa:es swh:sw tam:ta tel:te tgl:tl tha:th tur:tr ukr:uk urd:ur vie:vi
"""
XTREME_CODES = dict(pair.split(":") for pair in _XTREME.split())


@cache
def is_language(code: str) -> bool:
    """Tells whether a part of a file's name is a language, possibly with script and region: fr, pt-br, zho_Hans.

    What usually ends the names of other files is none (out, tok, bak, ...), although some small language has that code;
    people may name such a language all the same.
    """
    from langcodes import tag_is_valid

    match = CODE.fullmatch(code)
    return match is not None and ENDINGS.isdisjoint(re.split("[-_]", code.lower())) and tag_is_valid(code)


@cache
def meaning(code: str) -> str:
    """Returns the one spelling of all codes that mean the same: zh-TW of zh_tw, zho-TW and cmn_TW.

    Example:
        >>> [meaning(code) for code in ("deu", "pt_br", "zho_Hans", "cmn", "iw", "xx")]
        ['de', 'pt-BR', 'zh-Hans', 'zh', 'he', 'xx']
    """
    from langcodes import standardize_tag

    try:
        return standardize_tag(code, macro=True)
    except (ValueError, LookupError):
        return code.replace("_", "-").lower()


@cache
def primary(code: str) -> str:
    """Returns the language of a code without script and region, in two letters where it has them: zh of zho_Hans."""
    language = meaning(code).partition("-")[0]
    # CLDR calls Tagalog Filipino; files and word lists do not.
    return "tl" if language == "fil" else language


def find_code(code: str, among: Iterable[str]) -> str | None:
    """Returns the code among some that is spelled like another, or else the first that means the same."""
    there = list(among)
    return code if code in there else next((other for other in there if meaning(other) == meaning(code)), None)
