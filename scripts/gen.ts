/**
 * Writes the native side of the operation catalogue: argument structs with size assertions, the checks that
 * every length is enough, the op table, and the hash of the whole ABI. `--check` fails if a file is stale.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import {
  Dtype,
  largestDtype,
  MOMENT_BLOCK,
  MomentDtype,
  NEVER_ZERO,
  NF4_CODES,
  NF4_LIMITS,
  NF4_SMALLEST,
  NORM_BLOCK,
  type OpDef,
  PAGE,
  PANEL,
  QUANT_BLOCK,
  ROW_BLOCK,
  SEGMENT_WORDS,
  VOCAB_TILE,
} from "../src/ops/define.ts";
import { HEAD_ROW_CHUNK, HEAD_VOCAB_CHUNK } from "../src/ops/head.ts";
import { catalogue } from "../src/ops/index.ts";

const root = join(import.meta.dir, "..");
const banner = "// Written by scripts/gen.ts from src/ops. Do not edit.\n";

const camel = (name: string): string => name.replace(/(^|_)([a-z])/g, (_, __, c: string) => c.toUpperCase());
const params = (op: OpDef): [string, string][] => Object.entries(op.params);
const tensors = (op: OpDef) => Object.entries(op.tensors);
const words = (op: OpDef): number => 3 * tensors(op).length + params(op).length;

function wireStruct(op: OpDef): string {
  const fields = [
    ...tensors(op).map(([name]) => `  rlv_ref ${name};`),
    ...params(op).map(([name, type]) => `  ${type === "u32" ? "uint32_t" : "float"} ${name};`),
  ];
  return `// ${op.doc}\ntypedef struct {\n${fields.join("\n")}\n} rlv_op_${op.name};\nRLV_ASSERT_SIZE(rlv_op_${op.name}, ${words(op) * 4});\n`;
}

const floats = (values: readonly number[]): string =>
  values.map((x) => `${Number.isInteger(x) ? x.toFixed(1) : x}f`).join(", ");

/** ops.gen.h: plain C, shared by C++ and Metal sources. */
function header(): string {
  const constants: [string, number][] = [
    ["RLV_PANEL", PANEL],
    ["RLV_QUANT_BLOCK", QUANT_BLOCK],
    ["RLV_PAGE", PAGE],
    ["RLV_VOCAB_TILE", VOCAB_TILE],
    ["RLV_ROW_BLOCK", ROW_BLOCK],
    ["RLV_NORM_BLOCK", NORM_BLOCK],
    ["RLV_MOMENT_BLOCK", MOMENT_BLOCK],
    ["RLV_SEGMENT_WORDS", SEGMENT_WORDS],
    ["RLV_HEAD_ROW_CHUNK", HEAD_ROW_CHUNK],
    ["RLV_HEAD_VOCAB_CHUNK", HEAD_VOCAB_CHUNK],
  ];
  return `${banner}#pragma once
#ifndef __METAL_VERSION__
#include <stdint.h>
#ifdef __cplusplus
#define RLV_ASSERT_SIZE(type, bytes) static_assert(sizeof(type) == (bytes), #type)
#else
#define RLV_ASSERT_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#endif
#else
#define RLV_ASSERT_SIZE(type, bytes) static_assert(sizeof(type) == (bytes), #type)
#endif

#define RLV_F32 ${Dtype.f32}u
#define RLV_BF16 ${Dtype.bf16}u
#define RLV_F8 ${MomentDtype.f8}u  // moments of AdamW alone
#define RLV_INT8 0u
#define RLV_NF4 1u
#define RLV_NONE 0xffffffffu
${constants.map(([name, value]) => `#define ${name} ${value}u`).join("\n")}
#define RLV_NF4_CODES ${floats(NF4_CODES)}
#define RLV_NF4_LIMITS ${floats(NF4_LIMITS)}
#define RLV_NF4_SMALLEST ${NF4_SMALLEST}f

// A byte range of a buffer; offset and length in units of 16 bytes. buffer 0: absent.
typedef struct {
  uint32_t buffer, offset, length;
} rlv_ref;

enum {
${catalogue.map(({ op }, i) => `  RLV_OP_${op.name.toUpperCase()} = ${i + 1},`).join("\n")}
  RLV_OP_COUNT = ${catalogue.length + 1}
};

${catalogue.map(({ op }) => wireStruct(op)).join("\n")}`;
}

/** u64 arithmetic: every parameter is widened before it enters an expression. */
function cExpression(op: OpDef, expression: string): string {
  return expression.replace(/[a-z_][a-z_0-9]*/g, (word) =>
    word in op.params ? `uint64_t(a.${word})` : word === "min" ? "min_u64" : word,
  );
}

function argsStruct(op: OpDef): string {
  const fields = [
    ...tensors(op).map(([name, field]) => {
      const type = field.access === "in" ? "const void*" : "void*";
      return `  ${type} ${name};`;
    }),
    ...params(op).map(([name, type]) => `  ${type === "u32" ? "uint32_t" : "float"} ${name};`),
  ];
  return `// ${op.doc}\nstruct ${camel(op.name)} {\n${fields.join("\n")}\n};`;
}

function opFunctions(op: OpDef): string {
  const zeros = params(op).flatMap(([name], i) =>
    NEVER_ZERO.has(name) ? [`  if (a.${name} == 0) return kZero + ${i};\n`] : [],
  );
  const checks = tensors(op).map(([name, field], i) => {
    const need = cExpression(op, field.bytes);
    const missing = field.beside ? `  if (a.${field.beside}.buffer && !a.${name}.buffer) return ${i};\n` : "";
    return field.optional
      ? `${missing}  if (a.${name}.buffer && bytes_of(a.${name}) < ${need}) return ${i};`
      : `  if (!a.${name}.buffer || bytes_of(a.${name}) < ${need}) return ${i};`;
  });
  const dtypes = params(op)
    .map(([name]) => name)
    .filter((name) => /^[a-z]?dt$/.test(name));
  const quantized = "qt" in op.params ? "  if (a.qt > RLV_NF4) return kBadDtype;\n" : "";
  return `inline int check_${op.name}(const void* record) {
  const auto& a = *static_cast<const rlv_op_${op.name}*>(record);
  (void)a;
${zeros.join("")}${dtypes.map((name) => `  if (a.${name} > ${largestDtype(name) === MomentDtype.f8 ? "RLV_F8" : "RLV_BF16"}) return kBadDtype;\n`).join("")}${quantized}${checks.join("\n")}
  return -1;
}
inline void resolve_${op.name}(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_${op.name}*>(record);
  *static_cast<args::${camel(op.name)}*>(out) = args::${camel(op.name)}{${[
    ...tensors(op).map((_, i) => `p[${i}]`),
    ...params(op).map(([name]) => `a.${name}`),
  ].join(", ")}};
}
inline double flops_${op.name}(const void* record) {
  const auto& a = *static_cast<const rlv_op_${op.name}*>(record);
  (void)a;
  return double(${cExpression(op, op.flops)});
}`;
}

function accessCode(access: string): string {
  return { in: "kRead", out: "kWrite", inout: "kReadWrite", scratch: "kScratch" }[access]!;
}

/** args.gen.hpp: what C++ devices see, pointers resolved and lengths checked. */
function cppHeader(): string {
  const rows = catalogue.map(({ op, family }) => {
    const fields = tensors(op).map(
      ([name, field]) =>
        `{"${name}", ${accessCode(field.access)}, ${field.beside ? `"${field.beside}"` : "nullptr"}}`,
    );
    return `    {"${op.name}", "${family}", sizeof(rlv_op_${op.name}), sizeof(args::${camel(op.name)}), ${fields.length}, {${fields.join(", ")}}, ${params(op).length}, {${params(
      op,
    )
      .map(([name, type]) => `{"${name}", ${type === "f32"}}`)
      .join(", ")}}, check_${op.name}, resolve_${op.name}, flops_${op.name}},`;
  });
  const maxParams = Math.max(...catalogue.map(({ op }) => params(op).length));
  const maxTensors = Math.max(...catalogue.map(({ op }) => tensors(op).length));
  const maxWords = Math.max(...catalogue.map(({ op }) => words(op)));
  return `${banner}#pragma once
#include <cstddef>
#include <cstdint>
#include "ops.gen.h"

namespace rlv {
namespace args {
${catalogue.map(({ op }) => argsStruct(op)).join("\n")}
}  // namespace args

// X(name, Struct): one line per operation, in the order of the ids.
#define RLV_OPS(X) \\
${catalogue.map(({ op }) => `  X(${op.name}, ${camel(op.name)})`).join(" \\\n")}

// Scratch is read and written, and laid out as its operation likes.
enum Access : uint8_t { kRead = 1, kWrite = 2, kReadWrite = 3, kScratch = 7 };
constexpr int kMaxTensors = ${maxTensors};
constexpr int kMaxParams = ${maxParams};
constexpr int kMaxWords = ${maxWords};
constexpr int kBadDtype = 100;
constexpr int kZero = 200;  // plus the parameter that is 0

inline uint64_t size(uint64_t dt) { return dt == RLV_BF16 ? 2 : dt == RLV_F8 ? 1 : 4; }
inline uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }
inline uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
inline uint64_t packed_len(uint64_t n, uint64_t k, uint64_t dt) {
  return ceil_div(n, RLV_PANEL) * RLV_PANEL * (dt == RLV_BF16 ? ceil_div(k, 2) * 2 : k);
}
inline uint64_t quant_bytes(uint64_t n, uint64_t k, uint64_t qt) {
  return ceil_div(n, RLV_PANEL) * RLV_PANEL *
         (qt == RLV_NF4 ? ceil_div(k, RLV_QUANT_BLOCK) * (RLV_QUANT_BLOCK / 2) : ceil_div(k, 2) * 2);
}
inline uint64_t quant_scales(uint64_t n, uint64_t k, uint64_t qt) {
  return ceil_div(n, RLV_PANEL) * RLV_PANEL * (qt == RLV_NF4 ? ceil_div(k, RLV_QUANT_BLOCK) : 1);
}
inline uint64_t bytes_of(const rlv_ref& r) { return uint64_t(r.length) * 16; }

${catalogue.map(({ op }) => opFunctions(op)).join("\n")}

struct FieldInfo {
  const char* name;
  Access access;
  const char* beside;  // the tensor that is not there without this one
};

struct ParamInfo {
  const char* name;
  bool is_float;
};

struct OpInfo {
  const char* name;
  const char* family;
  uint32_t record_bytes;  // of the wire struct
  uint32_t args_bytes;    // of the resolved struct
  int tensors;
  FieldInfo field[kMaxTensors];
  int params;  // one word each, behind the tensors
  ParamInfo param[kMaxParams];
  // -1, the first tensor that is too short or missing, kBadDtype, or kZero and more.
  int (*check)(const void* record);
  void (*resolve)(const void* record, void* const* pointers, void* args);
  double (*flops)(const void* record);
};

inline const OpInfo& op_info(uint32_t id) {
  static const OpInfo table[RLV_OP_COUNT] = {
    {"", "", 0, 0, 0, {}, 0, {}, nullptr, nullptr, nullptr},
${rows.join("\n")}
  };
  return table[id];
}
}  // namespace rlv
`;
}

const abiSource = join(root, "metal/include/rlv.h");
const ops = header();
const hash = createHash("sha256")
  .update(ops)
  .update(cppHeader())
  .update(existsSync(abiSource) ? readFileSync(abiSource) : "")
  .digest("hex")
  .slice(0, 16);

const files: Record<string, string> = {
  "metal/include/ops.gen.h": ops,
  "metal/include/args.gen.hpp": cppHeader(),
  "metal/include/abi-hash.gen.h": `${banner}#pragma once\n#define RLV_ABI_HASH "${hash}"\n`,
  "src/device/abi.gen.ts": `${banner}/** Hash of the native interface that this source speaks. */\nexport const ABI_HASH = "${hash}";\n`,
};

const check = process.argv.includes("--check");
let stale = 0;
for (const [name, text] of Object.entries(files)) {
  const path = join(root, name);
  const current = existsSync(path) ? readFileSync(path, "utf8") : "";
  if (current === text) continue;
  stale++;
  if (check) console.error(`gen: ${name} is stale: run npm run gen`);
  else {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
    console.error(`gen: wrote ${name}`);
  }
}
process.exit(check && stale > 0 ? 1 : 0);
