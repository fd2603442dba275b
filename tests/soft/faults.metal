// Deliberately broken kernels: each has one fault, on the line marked "fault". tests/soft/faults.test.ts runs them.
#include <metal_stdlib>
using namespace metal;

kernel void missing_barrier(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[64];
  s[t] = float(t);
  o[t] = s[(t + 1) % 64];  // fault
}

kernel void wrong_barrier_flags(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[64];
  s[t] = float(t);
  threadgroup_barrier(mem_flags::mem_device);
  o[t] = s[(t + 1) % 64];  // fault
}

kernel void device_race_in_group(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  o[t] = float(t);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float next = o[(t + 1) % 64];  // fault
  threadgroup_barrier(mem_flags::mem_device);
  o[t] = next;
}

kernel void race_between_groups(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]],
                                uint g [[threadgroup_position_in_grid]]) {
  if (t == 0) o[0] = float(g);  // fault
}

kernel void race_between_simdgroups(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[64];
  s[t] = float(t);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  o[t] = s[(t + 32) % 64];  // fault
}

kernel void implicit_lockstep(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[32];
  s[t % 32] = float(t);
  o[t] = s[(t + 1) % 32];  // fault
}

kernel void store_off_by_one(device float* o [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  o[i + 1] = 1.0f;  // fault
}

kernel void load_before_start(device float* o [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  o[i] = (o - 4)[i];  // fault
}

kernel void threadgroup_off_by_one(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[63];
  s[t] = float(t);  // fault
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[t] = s[t % 63];
}

kernel void uninitialised(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[64];
  if (t != 7) s[t] = float(t);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[t] = s[t];  // fault
}

kernel void divergent_barrier(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[64];
  s[t] = float(t);
  if (t < 48) threadgroup_barrier(mem_flags::mem_threadgroup);  // fault
  o[t] = s[t];
}

kernel void two_barriers(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  if (t < 32)
    threadgroup_barrier(mem_flags::mem_threadgroup);  // fault
  else
    threadgroup_barrier(mem_flags::mem_threadgroup);
  o[t] = float(t);
}

kernel void early_return(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  if (t >= 60) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // fault
  o[t] = float(t);
}

kernel void divergent_simd(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  float x = float(t);
  if (t % 32 == 3)
    x = simd_sum(x);  // fault
  else
    x = simd_max(x);
  o[t] = x;
}

kernel void inactive_lane(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  o[t] = simd_shuffle(float(t), ushort(40));  // fault
}

kernel void misaligned(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  if (t == 0) *(device float4*)(o + 1) = float4(1.0f);  // fault
}

kernel void local_index(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  float a[4] = {0.0f, 1.0f, 2.0f, 3.0f};
  o[t] = a[t / 15];  // fault
}

struct Large {
  float x[64];
};
kernel void wrong_constant_size(device float* o [[buffer(0)]], constant Large& c [[buffer(1)]],
                                uint t [[thread_index_in_threadgroup]]) {  // fault
  o[t] = c.x[t];
}

kernel void too_much_memory(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[9000];  // fault
  s[t] = 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[t] = s[t];
}

kernel void endless(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  while (o[t] >= 0.0f) o[t] += 1.0f;  // fault
}

kernel void integer_division(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  o[t] = float(7 / (int(t) - 3));  // fault
}

kernel void float_to_integer(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  o[t] = float(int(o[t] + 3e9f));  // fault
}

kernel void missing_binding(device float* o [[buffer(0)]], device float* p [[buffer(1)]],
                            uint t [[thread_index_in_threadgroup]]) {
  o[t] = p[t];
}

// Two dispatches of a concurrent encoder: the second reads what the first wrote.
kernel void produce(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) { o[t] = 2.0f; }
kernel void consume(device float* o [[buffer(0)]], device float* p [[buffer(1)]],
                    uint t [[thread_index_in_threadgroup]]) {
  p[t] = o[t];  // fault
}

// ---- correct ones: nothing may be reported --------------------------------------------------------------------

kernel void correct_exchange(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float s[64];
  s[t] = float(t);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[t] = s[(t + 1) % 64];
}

kernel void correct_reuse(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]], uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float s[2];
  float total = 0.0f;
  for (uint i = 0; i < 3; i++) {
    const float x = simd_sum(float(t + i));
    if (lane == 0) s[group] = x;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    total += s[0] + s[1];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  o[t] = total;
}

// 1e-40 is no normal float32: an Apple GPU makes it 0.
kernel void correct_subnormals(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  o[t] = o[t] * 1e-20f * 1e-20f * 1e30f;
}

kernel void correct_halves(device ushort* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  o[t] = ushort(t);
}

kernel void correct_simd_exchange(device float* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]],
                                  uint lane [[thread_index_in_simdgroup]],
                                  uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float s[64];
  s[t] = float(t);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  o[t] = s[group * 32 + (lane + 1) % 32];
}

kernel void correct_atomics(device atomic_uint* o [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  if (t % 2 == 0) atomic_fetch_add_explicit(o, 1u, memory_order_relaxed);
}
