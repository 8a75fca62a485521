"""What a subclass of a replaced class may not override."""

from __future__ import annotations

from inspect import getattr_static

PACKAGE = __name__.rpartition(".")[0] + "."


class Uncalled:
    """Refuses subclasses that override a method of the replaced class which ours never calls: it would have no effect.

    One that also overrides the method from which all others are called is left alone.

    Attributes:
        uncalled: those methods' names.
        entry: the method that calls all others.
        library: where the replaced class is, for the error.
    """

    uncalled: tuple[str, ...] = ()
    entry = "forward"
    library = ""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        own, *_ = (one for one in cls.__mro__ if one.__module__.startswith(PACKAGE))
        if own is cls:
            return

        def overrides(name: str) -> bool:
            return getattr_static(cls, name, None) is not getattr_static(own, name, None)

        if overrides(cls.entry):
            return
        for name in filter(overrides, cls.uncalled):
            raise TypeError(
                f"{cls.__name__}: expected a subclass without {name}, got one that has it, which the losses of ctloss "
                f"never call; override {cls.entry}, or extend the class of {cls.library}"
            )
