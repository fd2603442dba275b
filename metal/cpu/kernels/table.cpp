// The kernels of one instruction set, indexed by operation id.
#include "../ctx.h"
#include "../vec.h"
#include "args.gen.hpp"

namespace rlv {
namespace RLV_ISA {

#define DECLARE(name, Struct) void name(Ctx&, const args::Struct&);
RLV_OPS(DECLARE)
#undef DECLARE

#define WRAP(name, Struct) \
  static void run_##name(Ctx& c, const void* a) { name(c, *static_cast<const args::Struct*>(a)); }
RLV_OPS(WRAP)
#undef WRAP

#define ROW(name, Struct) run_##name,
extern const Kernel kKernels[RLV_OP_COUNT];
const Kernel kKernels[RLV_OP_COUNT] = {nullptr, RLV_OPS(ROW)};
#undef ROW

}  // namespace RLV_ISA
}  // namespace rlv
