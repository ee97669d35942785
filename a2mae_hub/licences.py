"""Licences as the metadata of the Hub name them."""

from __future__ import annotations

import re

# Those that weights and imagery come under, by the ids of huggingface.co/docs/hub/repositories-licenses, which are
# SPDX's in lower case but for those that SPDX has no name for.
HUB_LICENCES = frozenset(
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause"
    " bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0"
    " cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0"
    " cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0"
    " epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl"
    " ncsa odbl odc-by ofl-1.1 openrail osl-3.0 pddl postgresql unknown unlicense wtfpl zlib".split()
)
_HUB_OF_SPDX = {"odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl", "c-uda-1.0": "c-uda"}


def hub_licence(licence: str | None) -> dict[str, str]:
    """Return the metadata of a card that tell a licence.

    Args:
        licence: An SPDX identifier in any case, or any other name of a licence; None where it is not known.

    Returns:
        `license`, and where the Hub has no id for it ("other") also `license_name` and `license_link`.

    Raises:
        ValueError: If the name has no letter or digit.
    """
    if licence is None:
        return {"license": "unknown"}
    name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")
    if not name:
        raise ValueError(f"licence={licence!r} names none; give an SPDX identifier (Apache-2.0), or leave it out.")
    name = _HUB_OF_SPDX.get(name, name)
    if name in HUB_LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": name, "license_link": "README.md"}
