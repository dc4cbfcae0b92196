"""``flaxbert doctor``: checks this machine and says what to mend."""


def run(quick: bool = False) -> int:
    """Checks this machine: versions, devices, memory, numerics of the compiler, caches and disk.

    Args:
      quick: Skip the checks that compute.

    Returns:
      0 when all checks pass, 1 otherwise.
    """
    from flaxbert.core.runtime import configure

    done = configure()
    from flaxbert.core.diagnosis import diagnose

    findings = diagnose(done, quick=quick)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{'ok  ' if finding.good else 'FAIL'}  {finding.name:<{width}}  {finding.text}")
    return 0 if all(finding.good for finding in findings) else 1
