"""What a subclass of a replaced class may not override."""

from __future__ import annotations


class Uncalled:
    """Refuses subclasses that override a method of the replaced class which ours never calls: it would have no effect.

    Attributes:
        uncalled: those methods' names.
        library: where the replaced class is, for the error.
    """

    uncalled: tuple[str, ...] = ()
    library = ""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        # A class says for itself and what it inherits which methods it leaves out.
        if "uncalled" in vars(cls):
            return
        own = next(one for one in cls.__mro__ if "uncalled" in vars(one))
        for name in cls.uncalled:
            if getattr(cls, name, None) is not getattr(own, name, None):
                raise TypeError(
                    f"{cls.__name__}: expected a subclass without {name}, got one that has it, which the losses of "
                    f"ctloss never call; override forward, or extend the class of {cls.library}"
                )
