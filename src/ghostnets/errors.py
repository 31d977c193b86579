# SPDX-License-Identifier: Apache-2.0
"""The exceptions of ghostnets: one tree, so that one place can turn them into exit codes."""


def first_line(error: Exception) -> str:
    """Of what another library's error says; its kind, where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class GhostnetsError(Exception):
    """Anything ghostnets raises on purpose."""


class UserError(GhostnetsError):
    """The input cannot be used; the message names the value and says what to do."""


class UnsupportedLayer(UserError):
    """A layer that the requested edit does not cover; the message names the layer and the property."""


class MissingExtra(UserError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'ghostnets[{extra}]'")
        self.feature = feature
        self.extra = extra
