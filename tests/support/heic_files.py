"""HEIC files for the image tests, laid out as iPhones do: HEVC tiles, a grid, a turn, Exif.

The pictures are encoded by libx265 through PyAV; the boxes around them are written here.
Source: ISO/IEC 23008-12 (HEIF): grid, irot, imir, pitm; ISO/IEC 14496-12: boxes.
"""

import io
import struct
from dataclasses import dataclass, field

import av
import numpy as np
from media_files import video_file

HEVC, GRID, EXIF = b"hvc1", b"grid", b"Exif"


def box(kind, *parts):
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def full_box(kind, version, *parts, flags=0):
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def hevc(pictures):
    """Encode pictures uint8 [n, h, w, 3], sides even: the decoder's configuration and each one."""
    params = "log-level=none:info=0:range=full:keyint=1:pools=none:frame-threads=1"
    film = video_file(
        *(pictures, 10, "mp4", "libx265", "yuvj420p"), **{"crf": 4, "x265-params": params}
    )
    config = film.index(b"hvcC") - 4
    end = config + struct.unpack_from(">I", film, config)[0]
    with av.open(io.BytesIO(film)) as container:
        return film[config:end], [bytes(p) for p in container.demux(video=0) if p.size]


@dataclass
class Heic:
    """Items in the order of their ids, which begin at 1, and what belongs to each."""

    kinds: list = field(default_factory=list)
    contents: list = field(default_factory=list)
    properties: list = field(default_factory=list)  # of all items
    owned: list = field(default_factory=list)  # per item: places in `properties`
    references: list = field(default_factory=list)

    def add(self, kind, content, *properties):
        self.kinds.append(kind)
        self.contents.append(content)
        for each in properties:
            if each not in self.properties:
                self.properties.append(each)
        self.owned.append([self.properties.index(each) + 1 for each in properties])
        return len(self.kinds)

    def add_pictures(self, pictures, *turns):
        """Add HEVC pictures of one size."""
        config, datas = hevc(np.asarray(pictures))
        extent = _extent(*pictures[0].shape[:2])
        return [self.add(HEVC, data, config, extent, *turns) for data in datas]

    def add_grid(self, picture, tile, *turns):
        """Add a picture cut into square tiles; the last ones are filled up, as phones do."""
        height, width = picture.shape[:2]
        rows, columns = -(-picture.shape[0] // tile), -(-picture.shape[1] // tile)
        padding = (rows * tile - picture.shape[0], columns * tile - picture.shape[1])
        whole = np.pad(picture, ((0, padding[0]), (0, padding[1]), (0, 0)), mode="edge")
        tiles = [
            whole[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile]
            for y in range(rows)
            for x in range(columns)
        ]
        return self.join(self.add_pictures(tiles), rows, columns, height, width, *turns)

    def join(self, tiles, rows, columns, height, width, *turns):
        """Add the grid of tiles that were added before."""
        content = struct.pack(">4B2I", 0, 1, rows - 1, columns - 1, width, height)
        grid = self.add(GRID, content, _extent(height, width), *turns)
        self._refer(b"dimg", grid, tiles)
        return grid

    def add_exif(self, exif, picture):
        """Add an Exif block that describes a picture."""
        self._refer(b"cdsc", self.add(EXIF, struct.pack(">I", 0) + exif), [picture])

    def file(self, primary):
        """Write the file; `primary` is the item to be shown."""
        head = box(b"ftyp", b"heic", struct.pack(">I", 0), b"mif1heic")
        start = len(head) + len(self._meta(primary, 0)) + 8
        return head + self._meta(primary, start) + box(b"mdat", *self.contents)

    def _refer(self, kind, source, targets):
        ids = struct.pack(f">2H{len(targets)}H", source, len(targets), *targets)
        self.references.append(box(kind, ids))

    def _meta(self, primary, start):
        entries = [
            full_box(b"infe", 2, struct.pack(">2H", item, 0), kind, b"\0")
            for item, kind in enumerate(self.kinds, 1)
        ]
        places = []
        for item, content in enumerate(self.contents, 1):
            places.append(struct.pack(">3H2I", item, 0, 1, start, len(content)))
            start += len(content)
        owners = [
            struct.pack(f">HB{len(owned)}B", item, len(owned), *(0x80 | each for each in owned))
            for item, owned in enumerate(self.owned, 1)
            if owned
        ]
        count = struct.pack(">H", len(self.kinds))
        return full_box(
            b"meta",
            0,
            full_box(b"hdlr", 0, b"\0\0\0\0pict", bytes(13)),
            full_box(b"pitm", 0, struct.pack(">H", primary)),
            full_box(b"iloc", 0, b"\x44\0", count, *places),
            full_box(b"iinf", 0, count, *entries),
            full_box(b"iref", 0, *self.references),
            box(
                b"iprp",
                box(b"ipco", *self.properties),
                full_box(b"ipma", 0, struct.pack(">I", len(owners)), *owners),
            ),
        )


def _extent(height, width):
    return full_box(b"ispe", 0, struct.pack(">2I", width, height))


def turned(quarters):
    """The property that turns a picture to the left when it is shown."""
    return box(b"irot", bytes([quarters]))


def mirrored(axis):
    """The property that mirrors a picture: 0 top and bottom, 1 left and right."""
    return box(b"imir", bytes([axis]))
