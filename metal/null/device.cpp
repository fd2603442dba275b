// The device that computes nothing: records are decoded, validated and counted as everywhere, buffers have a
// size but no memory. It plans memory, FLOPs and traffic of a run, and checks records without running them.
#include "../core/device.h"

namespace rlv {

namespace {

class NullDevice final : public Device {
 public:
  const char* name() const override { return "null"; }
  std::string info() const override { return "{\"name\":\"null\",\"isa\":\"none\",\"threads\":0}"; }
  bool has_memory() const override { return false; }
  void enqueue(std::unique_ptr<Program> program) override { complete(program->ticket); }
};

}  // namespace

std::unique_ptr<Device> make_null_device() { return std::make_unique<NullDevice>(); }

}  // namespace rlv
