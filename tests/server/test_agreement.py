"""What the summary says of the data of all sites together."""

from pfedst.messages.requests import Reply
from pfedst.server.agreement import joint_audit


def hellos(*found):
    """First replies of sites a, b, ...: a fingerprint and an audit each."""
    return {
        f"site_{letter}": Reply({"fingerprint": data, "protocol": {"data_audit": audit}})
        for letter, (data, audit) in zip("abc", found, strict=False)
    }


def audit(error=0, warning=0, note=0, codes=(), opened=True):
    return {"opened": opened, "findings": {"error": error, "warning": warning, "note": note}, "codes": list(codes)}


def test_sites_of_one_data_set_have_one_audit() -> None:
    one = audit(warning=2, codes=["duplicates", "small_class"])
    assert joint_audit(hellos(("x", one), ("x", one))) == one
    assert joint_audit(hellos(("x", None), ("x", None))) is None


def test_findings_of_hospitals_are_added() -> None:
    """The audit of the first hospital was once that of the run."""
    found = hellos(
        ("x", audit(warning=1, note=1, codes=["duplicates"])),
        ("y", audit(error=1, warning=2, codes=["unreadable", "duplicates", "small_class"], opened=False)),
    )
    assert joint_audit(found) == audit(1, 3, 1, ["duplicates", "unreadable", "small_class"], opened=False)


def test_a_hospital_without_an_audit_is_named() -> None:
    found = hellos(("x", audit(note=1)), ("y", None))
    assert joint_audit(found) == audit(note=1) | {"not_audited": ["site_b"]}
