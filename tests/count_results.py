"""Sums the JUnit reports of a folder: names what failed or was skipped, then one line of counts.

Exit code 0 only if something passed and nothing failed.
"""

import collections
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def outcome(case):
    """passed, failed or skipped, for the dialects of ctest, GoogleTest and pytest."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
        return "skipped"
    return "passed"


def main(folder):
    counts = collections.Counter()
    for report in sorted(pathlib.Path(folder).glob("*.xml")):
        try:
            root = ElementTree.parse(report).getroot()
        except ElementTree.ParseError as error:  # A program that died while it wrote.
            print(f"    FAILED: {report.stem}: unreadable report: {error}")
            counts["failed"] += 1
            continue
        for case in root.iter("testcase"):
            result = outcome(case)
            counts[result] += 1
            if result != "passed":
                name = f"{case.get('classname', '')}.{case.get('name')}".lstrip(".")
                print(f"    {result.upper()}: {report.stem}: {name}")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 0 if counts["passed"] and not counts["failed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
