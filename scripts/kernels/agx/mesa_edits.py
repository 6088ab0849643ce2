"""Change two things in Mesa 25.0's sources, so that its compiler can count our kernels.

    python3 mesa_edits.py MESA

Its offline compiler takes no program that spills: here it may, so that spills are counted. And it
adds addresses of threadgroup memory by hand, where the load has an operand for an index that it
scales itself (documented by github.com/dougallj/applegpu): here it uses that operand.
"""

import sys
from pathlib import Path

SPILLS = "has_scratch = true"
DRIVER = Path("src/asahi/clc/asahi_clc.c")
SELECTOR = Path("src/asahi/compiler/agx_compile.c")

# At the head of the function that emits a load, for an address base + (index << log2(element)).
INDEXED = """   /* counted by hlwq_mlx: the load scales its index */
   nir_scalar narrow = nir_get_scalar(instr->src[0].ssa, 0);
   if (nir_scalar_is_alu(narrow) && nir_scalar_alu_op(narrow) == nir_op_u2u16) {
      nir_scalar sum = nir_scalar_chase_alu_src(narrow, 0);
      if (nir_scalar_is_alu(sum) && nir_scalar_alu_op(sum) == nir_op_imadshl_agx &&
          sum.def->bit_size == 32) {
         nir_scalar index = nir_scalar_chase_alu_src(sum, 0);
         nir_scalar one = nir_scalar_chase_alu_src(sum, 1);
         nir_scalar start = nir_scalar_chase_alu_src(sum, 2);
         nir_scalar shift = nir_scalar_chase_alu_src(sum, 3);
         bool is_index = nir_scalar_is_const(one) && nir_scalar_as_uint(one) == 1 &&
                         nir_scalar_is_const(shift) &&
                         (1u << nir_scalar_as_uint(shift)) == instr->def.bit_size / 8;
         bool are_registers = !nir_scalar_is_const(index) && !nir_scalar_is_const(start) &&
                              index.def->num_components == 1 && start.def->num_components == 1;
         if (is_index && are_registers) {
            agx_index low[2];
            nir_scalar wide[2] = {index, start};
            for (unsigned i = 0; i < 2; i++) {
               low[i] = agx_temp(b->shader, AGX_SIZE_16);
               agx_subdivide_to(b, low[i], agx_get_index(wide[i].def->index, AGX_SIZE_32), 0);
            }
            agx_local_load_to(b, dst, low[0], low[1], format_for_bitsize(instr->def.bit_size),
                              BITFIELD_MASK(instr->def.num_components));
            agx_emit_cached_split(b, dst, instr->def.num_components);
            return;
         }
      }
   }
"""


def allow_spills(path: Path) -> None:
    text = path.read_text()
    if SPILLS in text:
        return
    name = ".is_helper = is_helper,"
    text = replace_once(path, text, name, f"{name} .{SPILLS},")
    for field in ("scratch_size", "preamble_scratch_size"):
        start = text.index(f"assert(compiled.info.{field} == 0")
        text = text[:start] + text[text.index(";", start) + 1 :]
    path.write_text(text)


def index_loads(path: Path) -> None:
    text = path.read_text()
    if INDEXED in text:
        return
    function = text.index("agx_emit_local_load(agx_builder *b")
    statement = text.index("agx_index base = agx_local_base(", function)
    line = text.rindex("\n", 0, statement) + 1
    path.write_text(text[:line] + INDEXED + text[line:])


def replace_once(path: Path, text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise SystemExit(f"[mesa_edits] needed {old!r} once in {path}. Use Mesa 25.0.7.")
    return text.replace(old, new)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    allow_spills(folder / DRIVER)
    index_loads(folder / SELECTOR)
