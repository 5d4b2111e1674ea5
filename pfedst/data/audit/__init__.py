"""The audit of a data set: finds problems that would make results misleading, before the first epoch."""

from pfedst.data.audit.facts import Seen, fingerprint, image_digests
from pfedst.data.audit.findings import AuditReport, Finding, Severity
from pfedst.data.audit.run import audit
from pfedst.data.audit.scan import scan

__all__ = ["AuditReport", "Finding", "Seen", "Severity", "audit", "fingerprint", "image_digests", "scan"]
