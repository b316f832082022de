"""PDFs written by hand, as small as they may be: with text, and without any to read."""

import hashlib
import zlib

PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")
NAME = b"0123456789abcdef"  # of the file, as its trailer has it
FONT = "<</Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding>>"
CHINESE = (
    "<</Type /Font /Subtype /Type0 /BaseFont /STSong /Encoding /UniGB-UCS2-H /DescendantFonts ["
    "<</Type /Font /Subtype /CIDFontType0 /BaseFont /STSong /CIDSystemInfo "
    "<</Registry (Adobe) /Ordering (GB1) /Supplement 4>> /FontDescriptor <</Type /FontDescriptor "
    "/FontName /STSong /Flags 4 /FontBBox [0 0 1000 1000] /ItalicAngle 0 /Ascent 880 /Descent 120 "
    "/CapHeight 880 /StemV 93>>>>]>>"
)
PICTURE = "0 0 100 100 re f"


def words(*lines: str, size: float = 12) -> str:
    """The content of a page with these lines. What is not on the page is not read: long ones need
    small letters."""
    shown = " 0 -20 Td ".join(f"({line}) Tj" for line in lines)
    return f"BT /F1 {size} Tf 72 720 Td {shown} ET"


def pdf(
    *contents: str,
    packed: bool = False,
    font: str = FONT,
    count: int | None = None,
    password: str | None = None,
) -> bytes:
    """A PDF of these pages. packed: with Flate. count: of pages, the first one again and again.
    password: without which it cannot be opened; an empty one still encrypts it."""
    first = 4
    kids = [f"{first + 2 * n} 0 R" for n in range(len(contents))]
    kids = kids if count is None else kids[:1] * count
    objects: list[bytes] = [
        b"<</Type /Catalog /Pages 2 0 R>>",
        f"<</Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)}>>".encode(),
        font.encode(),
    ]
    owner, key = _rc4(b"owner", PADDING), b""
    if password is not None:
        seed = (password.encode() + PADDING)[:32] + owner + b"\xfc\xff\xff\xff" + NAME
        key = hashlib.md5(seed).digest()[:5]
    for n, content in enumerate(contents):
        data = zlib.compress(content.encode()) if packed else content.encode()
        number = first + 2 * n + 1
        if key:
            own = key + number.to_bytes(3, "little") + b"\0\0"
            data = _rc4(hashlib.md5(own).digest()[:10], data)
        page = (
            f"<</Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number} 0 R "
            "/Resources <</Font <</F1 3 0 R>>>>>>"
        )
        told = f"<</Length {len(data)}{' /Filter /FlateDecode' if packed else ''}>>"
        objects += [page.encode(), told.encode() + b"\nstream\n" + data + b"\nendstream"]
    more = b""
    if key:
        objects.append(
            b"<</Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s>>>"
            % (owner.hex().encode(), _rc4(key, PADDING).hex().encode())
        )
        name = NAME.hex().encode()
        more = b" /Encrypt %d 0 R /ID [<%s> <%s>]" % (len(objects), name, name)
    return _file(objects, more)


def _file(objects: list[bytes], more: bytes) -> bytes:
    data, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    start, size = len(data), len(objects) + 1
    data += b"xref\n0 %d\n0000000000 65535 f \n" % size
    data += b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + b"trailer\n<</Size %d /Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (
        size,
        more,
        start,
    )


def _rc4(key: bytes, data: bytes) -> bytes:
    box, j = list(range(256)), 0
    for i in range(256):
        j = (j + box[i] + key[i % len(key)]) % 256
        box[i], box[j] = box[j], box[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + box[i]) % 256
        box[i], box[j] = box[j], box[i]
        out.append(byte ^ box[(box[i] + box[j]) % 256])
    return bytes(out)
