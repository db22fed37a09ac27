"""The allow-list: which DICOM elements are read at all, and the few codes that reading them takes."""

from __future__ import annotations

__all__ = [
    "DEFLATED",
    "ENCAPSULATED_PREFIX",
    "EXPLICIT_BIG",
    "EXPLICIT_LITTLE",
    "IMPLICIT_LITTLE",
    "LONG_VRS",
    "PIXEL_TAGS",
    "PRIVATE",
    "PRIVATE_GROUPS",
    "RLE",
    "SEQUENCES",
    "SHORT_VRS",
    "TAGS",
]

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
ENCAPSULATED_PREFIX = "1.2.840.10008.1.2.4."
RLE = "1.2.840.10008.1.2.5"

# The allow-list: nothing else leaves a file. No name, date, description or comment is in it.
TAGS: dict[int, tuple[str, str]] = {
    0x00080008: ("image_type", "CS"),
    0x00080016: ("sop_class", "UI"),
    0x00080018: ("sop_uid", "UI"),
    0x00080060: ("modality", "CS"),
    0x00100020: ("patient_id", "LO"),
    0x00180050: ("slice_thickness", "DS"),
    0x00180081: ("echo_time", "DS"),
    0x00180082: ("inversion_time", "DS"),
    0x00180086: ("echo_number", "IS"),
    0x00180088: ("spacing_between_slices", "DS"),
    0x00181060: ("trigger_time", "DS"),
    0x00181120: ("gantry_tilt", "DS"),
    0x00181210: ("kernel", "SH"),
    0x00181314: ("flip_angle", "DS"),
    0x00189087: ("b_value", "FD"),
    0x00189089: ("diffusion", "FD"),
    0x0020000D: ("study_uid", "UI"),
    0x0020000E: ("series_uid", "UI"),
    0x00200012: ("acquisition_number", "IS"),
    0x00200013: ("instance_number", "IS"),
    0x00200032: ("position", "DS"),
    0x00200037: ("orientation", "DS"),
    0x00200052: ("frame_of_reference", "UI"),
    0x00200100: ("temporal_position", "IS"),
    0x00209056: ("stack", "SH"),
    0x00209241: ("cardiac_phase", "FL"),
    0x00280002: ("samples", "US"),
    0x00280004: ("photometric", "CS"),
    0x00280008: ("frames", "IS"),
    0x00280010: ("rows", "US"),
    0x00280011: ("columns", "US"),
    0x00280030: ("pixel_spacing", "DS"),
    0x00280100: ("bits_allocated", "US"),
    0x00280101: ("bits_stored", "US"),
    0x00280102: ("high_bit", "US"),
    0x00280103: ("pixel_representation", "US"),
    0x00280120: ("padding", "US"),
    0x00280121: ("padding_limit", "US"),
    0x00281052: ("intercept", "DS"),
    0x00281053: ("slope", "DS"),
    0x00281054: ("rescale_type", "LO"),
    0x00541001: ("units", "CS"),
}
SEQUENCES = {
    0x00283000: "modality_lut",
    0x00540022: "detectors",
    0x52009229: "shared_groups",
    0x52009230: "frame_groups",
}
# (group, low byte of the element): name, VR, private creator of the block.
PRIVATE: dict[tuple[int, int], tuple[str, str, str]] = {
    (0x0019, 0x0A): ("mosaic_tiles", "US", "SIEMENS MR HEADER"),
    (0x0019, 0x0C): ("siemens_b", "IS", "SIEMENS MR HEADER"),
    (0x0019, 0x0E): ("siemens_direction", "FD", "SIEMENS MR HEADER"),
    (0x0019, 0xBB): ("ge_direction_x", "DS", "GEMS_ACQU_01"),
    (0x0019, 0xBC): ("ge_direction_y", "DS", "GEMS_ACQU_01"),
    (0x0019, 0xBD): ("ge_direction_z", "DS", "GEMS_ACQU_01"),
    (0x0043, 0x39): ("ge_b", "IS", "GEMS_PARM_01"),
    (0x0065, 0x09): ("uih_b", "FD", "Image Private Header"),
    (0x2001, 0x03): ("philips_b", "FL", "Philips Imaging DD 001"),
}
PRIVATE_GROUPS = frozenset(group for group, _ in PRIVATE)
PIXEL_TAGS = {0x7FE00008: "float", 0x7FE00009: "double", 0x7FE00010: "int"}
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
