// The reference device: every forward operation and every operation on data and state, in float64 and in the
// plainest order. It is what kernels and gradient rules are compared with; nothing here is fast.
#include "../core/device.h"
#include "attention.h"
#include "decode.h"
#include "dropout.h"
#include "elementwise.h"
#include "embedding.h"
#include "gemm.h"
#include "head.h"
#include "lora.h"
#include "mlp.h"
#include "norm.h"
#include "optimizer.h"
#include "quant.h"

namespace rlv {

namespace {

using ref::Complex;
using ref::Errors;
using ref::Field;
using ref::Fields;
using ref::Role;
using ref::Values;

constexpr double kStep = 1e-30;

template <class Op, class Args>
void forward(const Args& a, Errors& e) {
  const Fields fields = Op::fields(a);
  Values<double> v(fields);
  Op::run(a, v, e);
  for (size_t f = 0; f < fields.size(); f++)
    if (fields[f].role == Role::kOutput)
      for (size_t i = 0; i < fields[f].elements(); i++)
        ref::write(fields[f].data, fields[f].dt, fields[f].stored(i), v[f][i]);
}

// gradient = d/dx of the sum of cotangent*output, for every element x of every wanted input: one run each,
// with x moved by i*kStep. There is no difference to cancel, so this is exact to float64. Padding has no
// elements and gets 0.
template <class Op, class Args>
void complex_step(const Args& a, const float* const* cotangents, float* const* gradients, Errors& e) {
  const Fields fields = Op::fields(a);
  Values<Complex> v(fields);
  Values<Complex> before = v;
  for (size_t f = 0; f < fields.size(); f++) {
    if (!gradients[f]) continue;
    std::memset(gradients[f], 0, fields[f].stored_elements() * sizeof(float));
    for (size_t i = 0; i < fields[f].elements(); i++) {
      for (size_t o = 0; o < fields.size(); o++)
        if (fields[o].role == Role::kOutput) v.all(o) = before.all(o);
      v[f][i] += Complex(0, kStep);
      Op::run(a, v, e);
      if (!e.first.empty()) return;
      v[f][i] = before[f][i];
      double sum = 0;
      for (size_t o = 0; o < fields.size(); o++)
        for (size_t j = 0; cotangents[o] && j < fields[o].elements(); j++)
          sum += double(cotangents[o][j]) * (v[o][j].imag() / kStep);
      gradients[f][fields[f].stored(i)] = float(sum);
    }
  }
}

// The float32 range that a reference names for a tensor; nullptr if there is none.
float* resolve_floats(Device& device, const rlv_ref& r, const Field& field, Role role, Errors& e) {
  if (r.buffer == 0) return nullptr;
  uint64_t bytes = 0;
  char* base = static_cast<char*>(device.buffer_ptr(r.buffer, &bytes));
  const uint64_t begin = uint64_t(r.offset) * 16;
  if (field.role != role || !field.data) {
    e.fail("ref_vjp: cotangents belong to outputs and gradients to float inputs that are present");
    return nullptr;
  }
  if (!base || begin + bytes_of(r) > bytes || bytes_of(r) < field.stored_elements() * sizeof(float)) {
    e.fail("ref_vjp: range too short or beyond its buffer", r.buffer);
    return nullptr;
  }
  return reinterpret_cast<float*>(base + begin);
}

template <class Op, class Args>
void gradient(Device& device, const Args& a, const rlv_ref* cotangents, const rlv_ref* gradients, Errors& e) {
  const Fields fields = Op::fields(a);
  const float* from[kMaxTensors] = {};
  float* to[kMaxTensors] = {};
  for (size_t f = 0; f < fields.size(); f++) {
    from[f] = resolve_floats(device, cotangents[f], fields[f], Role::kOutput, e);
    to[f] = resolve_floats(device, gradients[f], fields[f], Role::kInput, e);
  }
  if (e.first.empty()) complex_step<Op>(a, from, to, e);
}

// What this device does with one operation; nullptr: nothing.
struct Row {
  void (*run)(const void* args, Errors&) = nullptr;
  void (*vjp)(Device&, const void* args, const rlv_ref* cotangents, const rlv_ref* gradients,
              Errors&) = nullptr;
};

// Gradients of operations have no reference of their own: the complex step is theirs.
template <class Args>
Row row_of(const Args*) {
  return {};
}
#define RLV_REF_FORWARD(Struct)                                                                              \
  Row row_of(const args::Struct*) {                                                                          \
    return {[](const void* a, Errors& e) { forward<ref::Struct>(*static_cast<const args::Struct*>(a), e); }, \
            [](Device& d, const void* a, const rlv_ref* c, const rlv_ref* g, Errors& e) {                    \
              gradient<ref::Struct>(d, *static_cast<const args::Struct*>(a), c, g, e);                       \
            }};                                                                                              \
  }
#define RLV_REF_DATA(name, Struct)                                                                          \
  Row row_of(const args::Struct*) {                                                                         \
    return {[](const void* a, Errors& e) { ref::name(*static_cast<const args::Struct*>(a), e); }, nullptr}; \
  }
RLV_REF_FORWARD(GemmNt)
RLV_REF_FORWARD(RmsNormFwd)
RLV_REF_FORWARD(QkNormRopeFwd)
RLV_REF_FORWARD(AttnFwd)
RLV_REF_FORWARD(SwigluFwd)
RLV_REF_FORWARD(EmbedFwd)
RLV_REF_FORWARD(GatherRows)
RLV_REF_FORWARD(LogprobFwd)
RLV_REF_FORWARD(Add)
RLV_REF_FORWARD(LoraFwd)
RLV_REF_FORWARD(Dropout)
RLV_REF_FORWARD(QuantLinear)
RLV_REF_DATA(attn_decode, AttnDecode)
RLV_REF_DATA(norm_qkv, NormQkv)
RLV_REF_DATA(rope_append, RopeAppend)
RLV_REF_DATA(linear_residual, LinearResidual)
RLV_REF_DATA(norm_swiglu, NormSwiglu)
RLV_REF_DATA(kv_append, KvAppend)
RLV_REF_DATA(kv_copy, KvCopy)
RLV_REF_DATA(sample, Sample)
RLV_REF_DATA(adamw, Adamw)
RLV_REF_DATA(clip_coef, ClipCoef)
RLV_REF_DATA(sq_norm, SqNorm)
RLV_REF_DATA(cast, Cast)
RLV_REF_DATA(copy, Copy)
RLV_REF_DATA(fill, Fill)
RLV_REF_DATA(pack_weight, PackWeight)
RLV_REF_DATA(unpack_weight, UnpackWeight)
RLV_REF_DATA(quant_embed, QuantEmbed)
RLV_REF_DATA(quantize_weight, QuantizeWeight)
RLV_REF_DATA(dequantize_weight, DequantizeWeight)
#undef RLV_REF_FORWARD
#undef RLV_REF_DATA

const Row& row(uint32_t id) {
#define ROW(name, Struct) row_of(static_cast<const args::Struct*>(nullptr)),
  static const Row rows[RLV_OP_COUNT] = {Row(), RLV_OPS(ROW)};
#undef ROW
  return rows[id];
}

class RefDevice final : public Device {
 public:
  const char* name() const override { return "ref"; }
  std::string info() const override { return "{\"name\":\"ref\",\"isa\":\"float64\",\"threads\":1}"; }

  // After an error the rest of the program is skipped: the stream has failed.
  void enqueue(std::unique_ptr<Program> program) override {
    Errors e;
    for (const Step& step : program->steps) {
      if (!row(step.id).run) {
        e.first = std::string("[") + op_info(step.id).name + "] ref: no backward operations: use rlv_ref_vjp";
        break;
      }
      row(step.id).run(program->args_of(step), e);
      if (!e.first.empty()) break;
    }
    if (!e.first.empty()) fail(e.first);
    complete(program->ticket);
  }
};

}  // namespace

bool ref_vjp(Device& device, const uint32_t* record, uint32_t words, const rlv_ref* cotangents,
             const rlv_ref* gradients) {
  const uint32_t id = words > 0 ? record[0] & 0xffffu : 0;
  if (id == 0 || id >= RLV_OP_COUNT || record[0] >> 16 != words ||
      words != 1 + op_info(id).record_bytes / 4) {
    device.fail("[ref_vjp] malformed record");
    return false;
  }
  if (!row(id).vjp) {
    device.fail(std::string("[ref_vjp] ") + op_info(id).name + " has no gradient");
    return false;
  }
  void* pointers[kMaxTensors];
  if (!device.resolve(record + 1, id, pointers)) return false;
  std::vector<uint64_t> args((op_info(id).args_bytes + 7) / 8);
  op_info(id).resolve(record + 1, pointers, args.data());
  Errors e;
  row(id).vjp(device, args.data(), cotangents, gradients, e);
  if (!e.first.empty()) device.fail(e.first);
  return e.first.empty();
}

std::unique_ptr<Device> make_ref_device() { return std::make_unique<RefDevice>(); }

}  // namespace rlv
