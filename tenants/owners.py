"""Owners: what belongs to an organization, to one of its teams, or to one key of a team."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.exceptions import ValidationError
from django.db import models

if TYPE_CHECKING:
    from tenants.models import ApiKey, Organization, Team


class Owned(models.Model):
    """Something whose owner is the narrowest of organization, team and key that is set.

    It has no fields: each model refers to its owners in its own way, and may outlive them or not.
    """

    if TYPE_CHECKING:
        organization: models.ForeignKey[Organization, Organization]
        team: models.ForeignKey[Team | None, Team | None]
        key: models.ForeignKey[ApiKey | None, ApiKey | None]
        organization_id: int
        team_id: int | None
        key_id: int | None

    class Meta:
        abstract = True

    @property
    def level(self) -> str:
        if self.key_id is not None:
            return "key"
        return "team" if self.team_id is not None else "organization"

    @property
    def owner(self) -> ApiKey | Team | Organization:
        return self.key or self.team or self.organization

    def clean(self) -> None:
        """Fill in the team of a key, and refuse owners that do not belong together."""
        if self.key is not None and self.team_id is None:
            self.team = self.key.team
        if self.key is not None and self.key.team_id != self.team_id:
            raise ValidationError({"key": "This key belongs to another team."})
        if self.team is not None and self.team.organization_id != self.organization_id:
            raise ValidationError({"team": "This team belongs to another organization."})
