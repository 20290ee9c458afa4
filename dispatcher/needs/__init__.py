"""Which models a job document needs, and how long its generation may take, as far as a document tells. No I/O."""

from dispatcher.needs.catalogue import Catalogue
from dispatcher.needs.models import needs_of
from dispatcher.needs.work import work_of

__all__ = ["Catalogue", "needs_of", "work_of"]
