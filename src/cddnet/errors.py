"""The exceptions users see. Each message says what is wrong, what was found and what to do."""


class CddnetError(Exception):
    """Base of every error raised on purpose; the command line prints it and exits with 1."""


class DicomError(CddnetError):
    """A DICOM file or series that cannot be used as CT."""


class FormatError(CddnetError):
    """A file that is not what its reader expects, or an output that may not be written."""


class GeometryError(CddnetError):
    """Slices whose positions, spacing or orientation do not form what was asked for."""


class ModelError(CddnetError):
    """A network or weights file that is unknown, damaged or does not fit."""


class SeriesChoiceError(CddnetError):
    """Several series match; `choices` lists (series UID, one-line description)."""

    def __init__(self, message: str, choices: tuple[tuple[str, str], ...]) -> None:
        super().__init__(message)
        self.choices = choices


class UnfitError(CddnetError):
    """A series that the fitness check refuses; it can be forced."""
