/** msl-check accepts and refuses what Metal does: small programs, and every kernel of this project. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { kernelSource } from "../../scripts/kernel-source.ts";

const root = resolve(import.meta.dir, "../..");
const program = join(root, "build/msl-check");
const PRELUDE = "#include <metal_stdlib>\nusing namespace metal;\n";
const scratch = mkdtempSync(join(tmpdir(), "rlv-soft-rules-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
/** How most kernels here begin. */
const K = "kernel void k(device float* o [[buffer(0)]]";

interface Rule {
  readonly name: string;
  readonly accepts: boolean;
  readonly source: string;
  /** What a refusal has to say, where its line is not enough or not known. */
  readonly says?: RegExp;
}

/** Each source is one line, the third of its file. */
const RULES: Readonly<Record<string, readonly Rule[]>> = {
  "address spaces": [
    {
      name: "device to threadgroup",
      accepts: false,
      source: "void f(device int* a) { threadgroup int* p = a; }",
    },
    { name: "device to thread", accepts: false, source: "void f(device float* a) { thread float* p = a; }" },
    {
      name: "cast between address spaces",
      accepts: false,
      source: "void f(device float* a) { threadgroup float* p = (threadgroup float*)a; }",
    },
    {
      name: "reinterpret_cast between address spaces",
      accepts: false,
      source: "void f(device float* a) { threadgroup float* p = reinterpret_cast<threadgroup float*>(a); }",
    },
    { name: "store to constant memory", accepts: false, source: "void f(constant float* a) { a[0] = 1; }" },
    { name: "const dropped", accepts: false, source: "void f(device const int* a) { device int* p = a; }" },
    { name: "parameter without", accepts: false, source: "void f(float* a) { a[0] = 1; }" },
    { name: "unnamed parameter without", accepts: false, source: "void f(float*) {}", says: /address space/ },
    { name: "reference parameter without", accepts: false, source: "float f(const float& a) { return a; }" },
    { name: "variable without", accepts: false, source: "void f(device float* a) { float* p = a; }" },
    { name: "reference without", accepts: false, source: "int f() { int x = 1; int& r = x; return r; }" },
    { name: "member without", accepts: false, source: "struct S { float* p; };", says: /address space/ },
    { name: "return type without", accepts: false, source: "float* f(thread float* a) { return a; }" },
    { name: "alias without", accepts: false, source: "using P = float*;" },
    { name: "cast without", accepts: false, source: "float f(device float* a) { return *(float*)a; }" },
    { name: "pointee without", accepts: false, source: "float f(device float** a) { return **a; }" },
    {
      name: "pointer to pointer",
      accepts: true,
      source: "float f(device float* thread* a) { return **a; }",
    },
    { name: "auto pointer", accepts: true, source: "void f(device float* a) { auto p = a + 1; *p = 2; }" },
    {
      name: "thread array as thread pointer",
      accepts: true,
      source: "float g(thread float* p) { return p[0]; } float f() { float l[4] = {0}; return g(l); }",
    },
    {
      name: "overloads by address space",
      accepts: true,
      source:
        "int g(device int* p) { return *p; } int g(threadgroup int* p) { return *p; } int f(device int* a) { return g(a); }",
    },
    {
      name: "references to device and constant memory",
      accepts: true,
      source:
        "struct S { float a; }; float f(device S* p, constant S& c) { device S& s = p[1]; s.a = c.a; return s.a; }",
    },
    {
      name: "vector pointer cast within device memory",
      accepts: true,
      source:
        "float f(device const float* p) { float4 v = *(device const float4*)p; return v.x + ((device const packed_float4*)p)[0].y; }",
    },
    { name: "device variable in a function", accepts: false, source: "void f() { device float x; }" },
    { name: "program scope variable", accepts: false, source: "float g = 1; float f() { return g; }" },
    {
      name: "program scope constant without address space",
      accepts: false,
      source: "constexpr float g = 1; float f() { return g; }",
    },
    {
      name: "program scope constants",
      accepts: true,
      source: "constant float g = 1; constant float t[2] = {1, 2}; float f() { return g + t[1]; }",
    },
    { name: "constant without value", accepts: false, source: "constant float g; float f() { return g; }" },
    {
      name: "constant of a value computed when loaded",
      accepts: false,
      source: "float h(float x) { return x * 2; } constant float g = h(2); float f() { return g; }",
    },
    {
      name: "variable template in constant memory",
      accepts: true,
      source: "template <class T> constexpr constant int n = sizeof(T); int f() { return n<half>; }",
    },
  ],
  "threadgroup memory": [
    { name: "in an ordinary function", accepts: false, source: "void f() { threadgroup float t[4]; }" },
    {
      name: "variable with a value",
      accepts: false,
      source: `${K}) { threadgroup float t = 1; o[0] = t; }`,
      says: /initializer/,
    },
    {
      name: "arrays, passed on",
      accepts: true,
      source: `void g(threadgroup float* p) { p[0] = 1; } ${K}) { threadgroup float t[2][8], u[4]; g(t[1]); g(u); o[0] = u[0]; }`,
    },
    {
      name: "kernel parameter",
      accepts: true,
      source: `${K}, threadgroup float* t [[threadgroup(0)]]) { t[0] = 1; o[0] = t[0]; }`,
    },
  ],
  kernels: [
    {
      name: "result",
      accepts: false,
      source: "kernel float k(device float* o [[buffer(0)]]) { return 1; }",
      says: /void/,
    },
    {
      name: "parameter without attribute",
      accepts: false,
      source: `${K}, uint i) { o[i] = 1; }`,
      says: /3:.*attribute/,
    },
    {
      name: "unknown attribute",
      accepts: false,
      source: `${K}, uint i [[thread_id]]) { o[i] = 1; }`,
      says: /thread_id/,
    },
    {
      name: "buffer 31",
      accepts: false,
      source: "kernel void k(device float* o [[buffer(31)]]) { o[0] = 1; }",
      says: /30/,
    },
    {
      name: "one index twice",
      accepts: false,
      source: `${K}, device float* p [[buffer(0)]]) { o[0] = p[0]; }`,
      says: /buffer\(0\)/,
    },
    {
      name: "one threadgroup index twice",
      accepts: false,
      source:
        "kernel void k(threadgroup float* o [[threadgroup(0)]], threadgroup float* p [[threadgroup(0)]]) { o[0] = p[0]; }",
      says: /threadgroup\(0\)/,
    },
    {
      name: "buffer by value",
      accepts: false,
      source: `${K}, constant float x [[buffer(1)]]) { o[0] = x; }`,
      says: /buffer/,
    },
    {
      name: "buffer in thread memory",
      accepts: false,
      source: "kernel void k(thread float* o [[buffer(0)]]) { o[0] = 1; }",
    },
    {
      name: "signed position",
      accepts: false,
      source: `${K}, int i [[thread_position_in_grid]]) { o[i] = 1; }`,
      says: /thread_position_in_grid/,
    },
    {
      name: "positions of different dimension",
      accepts: false,
      source: `${K}, uint2 i [[thread_position_in_grid]], uint3 n [[threads_per_threadgroup]]) { o[i.x] = n.z; }`,
    },
    {
      name: "a position of one dimension, a size of two",
      accepts: false,
      source: `${K}, uint i [[thread_position_in_grid]], uint2 n [[threads_per_grid]]) { o[i] = n.x; }`,
      says: /dimensions/,
    },
    {
      name: "call of a kernel",
      accepts: false,
      source: `${K}) { o[0] = 1; } kernel void l(device float* o [[buffer(0)]]) { k(o); }`,
    },
    {
      name: "two of one name",
      accepts: false,
      source: `${K}) { o[0] = 1; } kernel void k(device int* o [[buffer(0)]]) { o[0] = 1; }`,
      says: /'k'/,
    },
    {
      name: "every position and size",
      accepts: true,
      source:
        "[[kernel, max_total_threads_per_threadgroup(256)]] void k(device uint* o [[buffer(30)]], constant uint& n [[buffer(0)]], uint3 a [[thread_position_in_grid]], uint3 b [[threadgroup_position_in_grid]], uint3 c [[thread_position_in_threadgroup]], uint3 d [[threads_per_threadgroup]], uint3 e [[threadgroups_per_grid]], uint3 f [[threads_per_grid]], uint g [[thread_index_in_threadgroup]], uint h [[thread_index_in_simdgroup]], uint i [[simdgroup_index_in_threadgroup]], uint j [[simdgroups_per_threadgroup]], uint l [[threads_per_simdgroup]]) { o[n] = a.x + b.x + c.x + d.x + e.x + f.x + g + h + i + j + l; }",
    },
    {
      name: "scalar and ushort positions",
      accepts: true,
      source:
        "kernel void k(device uint* o [[buffer(0)]], uint i [[thread_position_in_grid]], ushort j [[thread_index_in_simdgroup]]) { o[i] = j; }",
    },
    {
      name: "instantiation by host name",
      accepts: true,
      source:
        'template <class T> kernel void k(device T* o [[buffer(0)]]) { o[0] = 1; } template [[host_name("k_half")]] kernel void k<half>(device half* o [[buffer(0)]]);',
    },
  ],
  "what of C++ is missing": [
    { name: "recursion", accepts: false, source: "int f(int x) { return f(x - 1); }", says: /itself/ },
    {
      name: "recursion through another function",
      accepts: false,
      source: "int g(int x); int f(int x) { return g(x - 1); } int g(int x) { return x > 0 ? f(x) : 0; }",
      says: /itself/,
    },
    { name: "double", accepts: false, source: "double f(double x) { return x; }", says: /double/ },
    { name: "long double", accepts: false, source: "void f() { long double d = 1; }" },
    {
      name: "double as template argument",
      accepts: false,
      source: "template <class T> T g(T x) { return x; } float f(float x) { return g<double>(x); }",
    },
    { name: "literal without suffix", accepts: true, source: "float f(float x) { return x * 2.0; }" },
    { name: "static local", accepts: false, source: "int f() { static int n; return ++n; }" },
    { name: "thread_local", accepts: false, source: "thread_local int n = 0; int f() { return n; }" },
    { name: "new", accepts: false, source: "void f() { thread int* p = new int; }" },
    { name: "delete", accepts: false, source: "void f(thread int* p) { delete p; }" },
    { name: "virtual function", accepts: false, source: "struct V { virtual void f(); };" },
    { name: "throw", accepts: false, source: "void f() { throw 1; }", says: /throw/ },
    {
      name: "try",
      accepts: false,
      source: "void g() {} void f() { try { g(); } catch (...) { } }",
      says: /try/,
    },
    { name: "noexcept", accepts: false, source: "int f(int x) noexcept { return x; }", says: /noexcept/ },
    { name: "function pointer", accepts: false, source: "void g() {} void f() { void (*q)() = g; q(); }" },
    { name: "goto", accepts: false, source: "void f() { l: goto l; }", says: /goto/ },
    { name: "asm", accepts: false, source: 'void f() { asm("nop"); }', says: /asm/ },
    {
      name: "dynamic_cast",
      accepts: false,
      source: "struct A {}; struct B : A {}; void f(thread A* a) { auto b = dynamic_cast<thread B*>(a); }",
    },
    { name: "typeid", accepts: false, source: "bool f(int x) { return typeid(x) == typeid(int); }" },
    { name: "variable arguments", accepts: false, source: "int f(int n, ...) { return n; }" },
    { name: "array of a variable length", accepts: false, source: "int f(int n) { int a[n]; return a[0]; }" },
    { name: "standard C++ header", accepts: false, source: "#include <vector>", says: /vector/ },
    { name: "printf", accepts: false, source: 'void f() { printf("x"); }' },
    { name: "failed static_assert", accepts: false, source: 'static_assert(sizeof(half) == 4, "half");' },
    {
      name: "templates, operators, enumerations",
      accepts: true,
      source:
        "enum class E : uint { a, b }; template <class... A> int count(A...) { return sizeof...(A); } struct S { int x; S operator+(S o) const { return S{x + o.x}; } }; int f(S a, S b) { return (a + b).x + int(E::b) + count(1, 2.0f); }",
    },
    {
      name: "struct from and to device memory",
      accepts: true,
      source:
        "struct S { float a; int b; }; float f(device S* p, uint i) { S s = p[i]; p[i + 1] = s; return s.a; }",
    },
    {
      name: "struct results",
      accepts: true,
      source:
        "struct S { float a; S() = default; S(float x) : a(x) {} }; S g() { return S(1.0f); } float f() { S s; s = g(); s = S(3.0f); return s.a; }",
    },
    {
      name: "member function of thread on a device object",
      accepts: false,
      source:
        "struct S { float a; float g() const { return a; } }; float f(device const S* p) { return p->g(); }",
    },
    {
      name: "member function of device on a device object",
      accepts: true,
      source:
        "struct S { float a; float g() const device { return a; } }; float f(device const S* p) { return p->g(); }",
    },
    {
      name: "member function of thread on a thread object",
      accepts: true,
      source:
        "struct S { float a; float g() const { return a; } }; float f(thread const S* p) { S s = *p; return p->g() + s.g(); }",
    },
  ],
  "function constants": [
    {
      name: "size of an array",
      accepts: false,
      source: `constant int N [[function_constant(0)]]; ${K}) { float a[N]; o[0] = a[0]; }`,
    },
    {
      name: "template argument",
      accepts: false,
      source: `constant int N [[function_constant(0)]]; template <int M> void g(device float* o) { o[0] = M; } ${K}) { g<N>(o); }`,
    },
    {
      name: "with a value",
      accepts: false,
      source: "constant int N [[function_constant(0)]] = 4; int f() { return N; }",
    },
    {
      name: "outside constant memory",
      accepts: false,
      source: "int N [[function_constant(0)]]; int f() { return N; }",
    },
    {
      name: "in a loop",
      accepts: true,
      source: `constant int N [[function_constant(0)]]; ${K}) { for (int i = 0; i < N; i++) o[i] = 1; }`,
    },
    {
      name: "defined or not",
      accepts: true,
      source:
        "constant int N [[function_constant(0)]]; constant int M = is_function_constant_defined(N) ? N : 4; int f() { return M; }",
    },
    {
      name: "optional argument",
      accepts: true,
      source: `constant bool on [[function_constant(0)]]; ${K}, device float* p [[buffer(1), function_constant(on)]]) { o[0] = on ? p[0] : 0; }`,
    },
  ],
  "vectors and numbers": [
    {
      name: "wrong number of components",
      accepts: false,
      source: "float4 f(float2 v) { return float4(v, 1.0f); }",
      says: /components/,
    },
    {
      name: "too many components",
      accepts: false,
      source: "float2 f(float4 v) { return float2(v, 1.0f); }",
      says: /components/,
    },
    {
      name: "constructor from a longer vector",
      accepts: false,
      source: "float3 f(float4 v) { return float3(v); }",
      says: /sizes/,
    },
    { name: "implicit float4 to half4", accepts: false, source: "half4 f(float4 v) { return v; }" },
    { name: "implicit int4 to float4", accepts: false, source: "float4 f(int4 v) { return v; }" },
    { name: "implicit float to half", accepts: true, source: "half f(float v) { return v; }" },
    { name: "half4(float4)", accepts: true, source: "half4 f(float4 v) { return half4(v); }" },
    {
      name: "swizzles",
      accepts: true,
      source: "float4 f(float4 v) { v.xz = v.wy; v.rgb *= 2.0f; return v.wzyx; }",
    },
    {
      name: "swizzle with one component twice as target",
      accepts: false,
      source: "void f(float4 v) { v.xx = float2(1); }",
    },
    { name: "component past the end", accepts: false, source: "float f(float2 v) { return v.z; }" },
    {
      name: "vector as condition",
      accepts: false,
      source: "int f(float4 a, float4 b) { if (a < b) return 1; return 0; }",
    },
    {
      name: "vector as condition of ?:",
      accepts: false,
      source: "float4 f(float4 a, float4 b) { return (a < b) ? a : b; }",
    },
    {
      name: "any of a comparison",
      accepts: true,
      source: "bool f(float4 a, float4 b) { bool4 m = a < b; return any(m); }",
    },
    {
      name: "float4 of a comparison",
      accepts: true,
      source: "float4 f(float4 a, float4 b) { return float4(a < b); }",
    },
    {
      name: "select by a comparison",
      accepts: true,
      source: "float4 f(float4 a, float4 b) { return select(a, b, a < b); }",
    },
    {
      name: "vec<T, 4>",
      accepts: true,
      source:
        "template <class T> T f(device const T* p) { vec<T, 4> v = vec<T, 4>(p[0], p[1], p[2], p[3]); return v.x + v.w; } float g(device const float* p) { return f(p); }",
    },
    { name: "min(uint, int)", accepts: false, source: "uint f(uint x) { return min(x, 5); }" },
    { name: "max(half, float)", accepts: false, source: "half f(half x) { return max(x, 0.0f); }" },
    { name: "sqrt(int)", accepts: false, source: "float f(int x) { return sqrt(x); }" },
    {
      name: "precise, fast and half literals",
      accepts: true,
      source: "half f(half x) { return x * 1.5h + half(precise::exp(1.0f) - fast::exp(1.0f)); }",
    },
    {
      name: "binary literals and digit separators",
      accepts: true,
      source: "uint f() { return 0b101u + 1'000u; }",
    },
    { name: "shifts of uchar", accepts: true, source: "uint f(uchar a) { return (a >> 4) | (a & 0xF); }" },
    {
      name: "bfloat arithmetic",
      accepts: true,
      source: "bfloat f(bfloat a, bfloat b) { return a * b + bfloat(1.0f); }",
    },
    {
      name: "as_type",
      accepts: true,
      source: "uint f(float a) { return as_type<uint>(a); } half2 g(uint a) { return as_type<half2>(a); }",
    },
    {
      name: "as_type of another size",
      accepts: false,
      source: "ushort f(float a) { return as_type<ushort>(a); }",
      says: /size/,
    },
  ],
  "atomics, barriers, simdgroups": [
    {
      name: "plain access to an atomic",
      accepts: false,
      source: "void f(device atomic_uint* a) { *a = 1; }",
    },
    {
      name: "order other than relaxed",
      accepts: false,
      source: "void f(device atomic_uint* a) { atomic_fetch_add_explicit(a, 1u, memory_order_seq_cst); }",
      says: /seq_cst/,
    },
    {
      name: "maximum of atomic floats",
      accepts: false,
      source: "void f(device atomic_float* a) { atomic_fetch_max_explicit(a, 1.0f, memory_order_relaxed); }",
      says: /float/,
    },
    {
      name: "atomic float in threadgroup memory",
      accepts: false,
      source:
        "void f(threadgroup atomic_float* a) { atomic_fetch_add_explicit(a, 1.0f, memory_order_relaxed); }",
      says: /float/,
    },
    {
      name: "sums of uint and float",
      accepts: true,
      source:
        "void f(device atomic_float* a, threadgroup atomic_uint* b) { atomic_fetch_add_explicit(a, 1.0f, memory_order_relaxed); atomic_fetch_max_explicit(b, 1, memory_order_relaxed); }",
    },
    { name: "barrier without flags", accepts: false, source: "void f() { threadgroup_barrier(); }" },
    {
      name: "barrier of both memories",
      accepts: true,
      source: "void f() { threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup); }",
    },
    {
      name: "matrix of 4x4",
      accepts: false,
      source: "void f() { simdgroup_matrix<float, 4, 4> m; }",
      says: /8x8/,
    },
    {
      name: "matrix of integers",
      accepts: false,
      source: "void f() { simdgroup_matrix<int, 8, 8> m; }",
      says: /float/,
    },
    {
      name: "matrix from constant memory",
      accepts: false,
      source: "void f(constant float* p) { simdgroup_float8x8 m; simdgroup_load(m, p, 8); }",
    },
    {
      name: "matrix product",
      accepts: true,
      source:
        "void f(device const half* p, threadgroup float* q) { simdgroup_half8x8 a, b; simdgroup_float8x8 c(0); simdgroup_load(a, p, 8); simdgroup_load(b, p, 8, ulong2(0, 8), true); simdgroup_multiply_accumulate(c, a, b, c); simdgroup_store(c, q, 8); }",
    },
    {
      name: "sums and shuffles",
      accepts: true,
      source: "float f(float x, float4 v) { return simd_sum(x) + simd_shuffle_xor(x, 1) + simd_sum(v).y; }",
    },
  ],
};

/** Where software Metal is known to differ, and why; `accepts` is Metal's verdict. */
const DISAGREE: readonly (Rule & { readonly reason: string })[] = [
  {
    name: "struct copied out of constant memory",
    reason:
      "OpenCL's constant memory is outside its generic address space: no implicit copy constructor fits",
    accepts: true,
    source: "struct S { float a; int b; }; float f(constant S& p) { S s = p; return s.a; }",
  },
  {
    name: "rvalue for a const thread reference",
    reason: "clang's temporaries bind to generic references only",
    accepts: true,
    source: "float g(const thread float& x) { return x; } float f() { return g(1.0f); }",
  },
  {
    name: "pow(float, int)",
    reason: "functions are templates of one type, not overloads",
    accepts: true,
    source: "float f(float x) { return pow(x, 2); }",
  },
  {
    name: "variable that hides another",
    reason: "warnings of this kind are errors here, by choice",
    accepts: true,
    source: "float f(float x) { float y = x; { float x = y; y += x; } return y; }",
  },
];

const kernels = readdirSync(join(root, "metal/kernels")).filter((name) => name.endsWith(".metal"));

describe.skipIf(!existsSync(program))("msl-check (scripts/build-native --soft)", () => {
  const fileOf = (name: string) => join(scratch, name.replaceAll(/[^a-zA-Z0-9_.]/g, "_"));
  const errors = new Map<string, readonly string[]>();

  beforeAll(() => {
    const files: string[] = [];
    const add = (name: string, source: string) => {
      files.push(fileOf(name));
      writeFileSync(fileOf(name), source);
    };
    for (const [topic, rules] of Object.entries({ ...RULES, disagree: DISAGREE }))
      for (const { name, source } of rules) add(`${topic}.${name}`, `${PRELUDE}${source}\n`);
    for (const name of kernels) add(name, kernelSource(join(root, "metal/kernels", name)));
    // Verdicts kept from before a change of the checker would hide it.
    const env = { ...process.env, RLV_SOFT_CACHE: join(scratch, "cache") };
    const result = Bun.spawnSync([program, "--lint", "--json", ...files], { env });
    for (const line of result.stdout.toString().trim().split("\n")) {
      const verdict = JSON.parse(line);
      errors.set(verdict.file, verdict.errors);
    }
  }, 600_000);

  const verdict = (name: string) => errors.get(fileOf(name))!.join("\n");

  for (const [topic, rules] of Object.entries(RULES))
    describe(topic, () => {
      for (const { name, accepts, says } of rules)
        test(`${name}: ${accepts ? "accepted" : "refused"}`, () => {
          if (accepts) expect(verdict(`${topic}.${name}`)).toBe("");
          else expect(verdict(`${topic}.${name}`)).toMatch(says ?? /:3:/);
        });
    });

  describe("known to differ from Metal", () => {
    for (const { name, accepts, reason } of DISAGREE)
      test(`${name}: ${accepts ? "refused" : "accepted"}: ${reason}`, () => {
        expect(verdict(`disagree.${name}`) === "").toBe(!accepts);
      });
  });

  describe("kernels of this project", () => {
    for (const name of kernels) test(name, () => expect(verdict(name)).toBe(""));
  });
});
