// Encoders: check what Metal's validation checks, then add commands to their command buffer.
#include "metal_classes.h"

#include <cstring>

namespace soft {
namespace metal {

namespace {

constexpr size_t kMaxInlineBytes = 4096;

uint64_t next_epoch() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

std::string text(const MTL::Size& s) {
  return std::to_string(s.width) + "x" + std::to_string(s.height) + "x" + std::to_string(s.depth);
}

bool is_zero(const MTL::Size& s) { return s.width == 0 || s.height == 0 || s.depth == 0; }

bool index_is_valid(UInteger index, const char* selector) {
  if (index < kMaxBuffers) return true;
  misuse(std::string(selector) + ": index " + std::to_string(index) + " is beyond " +
         std::to_string(kMaxBuffers - 1));
  return false;
}

bool offset_is_valid(size_t offset, size_t length, const char* selector) {
  if (offset % 4 != 0)
    misuse(std::string(selector) + ": offset " + std::to_string(offset) + " is not a multiple of 4");
  else if (offset > length)
    misuse(std::string(selector) + ": offset " + std::to_string(offset) + " is beyond the buffer's " +
           std::to_string(length) + " bytes");
  else
    return true;
  return false;
}

}  // namespace

// ---- every encoder ----

CommandEncoder::CommandEncoder(CommandBuffer* buffer) : commands(buffer), device(buffer->device) {
  buffer->encoder = this;
}

CommandEncoder::~CommandEncoder() {
  if (ended) return;
  commands->encoder = nullptr;
  misuse("an encoder is deallocated without endEncoding");
}

bool CommandEncoder::is_open(const char* selector) const {
  if (!ended) return true;
  misuse(std::string(selector) + ": after endEncoding");
  return false;
}

void CommandEncoder::end_encoding() {
  if (!is_open("endEncoding")) return;
  ended = true;
  commands->encoder = nullptr;
}

void CommandEncoder::push_debug_group(String*) {
  if (is_open("pushDebugGroup:")) debug_groups++;
}

void CommandEncoder::pop_debug_group() {
  if (!is_open("popDebugGroup")) return;
  if (debug_groups == 0) return misuse("popDebugGroup: without pushDebugGroup:");
  debug_groups--;
}

void CommandEncoder::signpost(String*) { is_open("insertDebugSignpost:"); }

// ---- MTLComputeCommandEncoder: state ----

ComputeCommandEncoder::ComputeCommandEncoder(CommandBuffer* buffer, MTL::DispatchType type)
    : CommandEncoder(buffer), dispatch_type(type), epoch_(next_epoch()) {}

void ComputeCommandEncoder::set_pipeline(ComputePipelineState* pipeline) {
  if (!is_open("setComputePipelineState:")) return;
  if (!pipeline) return misuse("setComputePipelineState: nil");
  program_ = pipeline->program;
  commands->use(pipeline, program_);
}

void ComputeCommandEncoder::set_buffer(Buffer* buffer, UInteger offset, UInteger index) {
  constexpr const char* kSelector = "setBuffer:offset:atIndex:";
  if (!is_open(kSelector) || !index_is_valid(index, kSelector)) return;
  slots_[index] = Slot();
  if (!buffer || !offset_is_valid(offset, buffer->length(), kSelector)) return;
  slots_[index].memory = buffer->memory;
  slots_[index].offset = offset;
  commands->use(buffer, buffer->memory);
}

void ComputeCommandEncoder::set_buffers(Buffer* const* buffers, const UInteger* offsets, NS::Range range) {
  for (UInteger i = 0; i < range.length; i++) set_buffer(buffers[i], offsets[i], range.location + i);
}

void ComputeCommandEncoder::set_buffer_offset(UInteger offset, UInteger index) {
  constexpr const char* kSelector = "setBufferOffset:atIndex:";
  if (!is_open(kSelector) || !index_is_valid(index, kSelector)) return;
  Slot& slot = slots_[index];
  if (!slot.memory)
    return misuse(std::string(kSelector) + ": no buffer is bound at index " + std::to_string(index));
  if (offset_is_valid(offset, slot.memory->bytes, kSelector)) slot.offset = offset;
}

void ComputeCommandEncoder::set_bytes(const void* bytes, UInteger length, UInteger index) {
  constexpr const char* kSelector = "setBytes:length:atIndex:";
  if (!is_open(kSelector) || !index_is_valid(index, kSelector)) return;
  if (!bytes || length == 0) return misuse(std::string(kSelector) + ": no bytes");
  if (length > kMaxInlineBytes)
    return misuse(std::string(kSelector) + ": " + std::to_string(length) +
                  " bytes, at most 4096 are allowed");
  const char* first = static_cast<const char*>(bytes);
  slots_[index] = Slot();
  slots_[index].bytes = std::make_shared<const std::vector<char>>(first, first + length);
}

void ComputeCommandEncoder::set_threadgroup_memory(UInteger length, UInteger index) {
  constexpr const char* kSelector = "setThreadgroupMemoryLength:atIndex:";
  if (!is_open(kSelector) || !index_is_valid(index, kSelector)) return;
  if (length % 16 != 0)
    return misuse(std::string(kSelector) + ": " + std::to_string(length) + " is not a multiple of 16");
  if (length > kThreadgroupMemory)
    return misuse(std::string(kSelector) + ": " + std::to_string(length) + " bytes, at most " +
                  std::to_string(kThreadgroupMemory) + " are possible");
  threadgroup_bytes_[index] = length;
}

void ComputeCommandEncoder::barrier(MTL::BarrierScope scope) {
  if (is_open("memoryBarrierWithScope:") && (scope & MTL::BarrierScopeBuffers)) epoch_ = next_epoch();
}

// Orders everything, not the named resources alone.
void ComputeCommandEncoder::barrier_of(Object* const*, UInteger) {
  if (is_open("memoryBarrierWithResources:count:")) epoch_ = next_epoch();
}

void ComputeCommandEncoder::use_resource(Buffer* resource, MTL::ResourceUsage) {
  if (!is_open("useResource:usage:")) return;
  if (!resource) return misuse("useResource: nil");
  commands->use(resource, resource->memory);
}

void ComputeCommandEncoder::use_resources(Buffer* const* resources, UInteger count,
                                          MTL::ResourceUsage usage) {
  for (UInteger i = 0; i < count; i++) use_resource(resources[i], usage);
}

// Buffers are bound one by one, which makes them resident.
void ComputeCommandEncoder::use_heap(Heap* heap) {
  if (is_open("useHeap:") && !heap) misuse("useHeap: nil");
}

void ComputeCommandEncoder::use_heaps(Heap* const* heaps, UInteger count) {
  for (UInteger i = 0; i < count; i++) use_heap(heaps[i]);
}

// ---- MTLComputeCommandEncoder: dispatch ----

bool ComputeCommandEncoder::threads_are_valid(MTL::Size threads) const {
  const std::string dispatch = "dispatch of '" + program_->kernel->host_name + "': ";
  if (is_zero(threads)) {
    misuse(dispatch + "threads per threadgroup are zero: " + text(threads));
    return false;
  }
  const bool within =
      threads.width <= kMaxThreads && threads.height <= kMaxThreads && threads.depth <= kMaxThreads;
  const UInteger total = within ? threads.width * threads.height * threads.depth : 0;
  if (!within || total > program_->max_threads) {
    misuse(dispatch + text(threads) + " threads per threadgroup, the pipeline allows " +
           std::to_string(program_->max_threads));
    return false;
  }
  if (program_->multiple_of_width && total % kLanes != 0) {
    misuse(dispatch + text(threads) + " threads per threadgroup, the pipeline promises a multiple of 32");
    return false;
  }
  return true;
}

// Arguments that depend on a function constant are there if it is true.
bool ComputeCommandEncoder::is_required(const Argument& argument) const {
  if (argument.function_constant.empty()) return true;
  for (const FunctionConstant& constant : program_->code->library->constants) {
    if (constant.name != argument.function_constant) continue;
    auto value = program_->constants.find(constant.index);
    return value != program_->constants.end() && value->second != 0;
  }
  return false;
}

bool ComputeCommandEncoder::bind(const Argument& argument, soft::Dispatch& dispatch,
                                 std::vector<std::shared_ptr<const void>>& kept) const {
  const auto missing = [&](const char* what) {
    if (!is_required(argument)) return true;
    misuse("dispatch of '" + dispatch.kernel + "': missing " + what + " binding at index " +
           std::to_string(argument.index) + " for " + argument.name);
    return false;
  };
  if (argument.index < 0 || argument.index >= int(kMaxBuffers)) return true;
  if (argument.kind == "threadgroup") {
    const size_t bytes = threadgroup_bytes_[argument.index];
    dispatch.threadgroup_bytes[argument.index] = bytes;
    return bytes != 0 || missing("threadgroup memory");
  }
  if (argument.kind != "buffer") return true;
  const Slot& slot = slots_[argument.index];
  Binding& binding = dispatch.buffers[argument.index];
  if (slot.memory) {
    binding.base = slot.memory->data;
    binding.bytes = slot.memory->bytes;
    binding.offset = slot.offset;
    binding.shadow = &slot.memory->shadow;
    kept.push_back(slot.memory);
  } else if (slot.bytes) {
    // Kernels only read what is bound this way.
    binding.base = const_cast<char*>(slot.bytes->data());
    binding.bytes = slot.bytes->size();
    kept.push_back(slot.bytes);
  }
  return slot.bound() || missing("buffer");
}

bool ComputeCommandEncoder::bind_arguments(soft::Dispatch& dispatch,
                                           std::vector<std::shared_ptr<const void>>& kept) const {
  for (const Argument& argument : program_->kernel->arguments)
    if (!bind(argument, dispatch, kept)) return false;
  size_t threadgroup_memory = 0;
  for (size_t bytes : dispatch.threadgroup_bytes) threadgroup_memory += bytes;
  if (threadgroup_memory <= kThreadgroupMemory) return true;
  misuse("dispatch of '" + dispatch.kernel + "': " + std::to_string(threadgroup_memory) +
         " bytes of threadgroup memory, at most " + std::to_string(kThreadgroupMemory) + " are possible");
  return false;
}

void ComputeCommandEncoder::dispatch(MTL::Size grid, MTL::Size threads, bool exact) {
  if (!is_open("dispatch")) return;
  if (!program_) return misuse("dispatch: no compute pipeline state is set");
  if (!threads_are_valid(threads) || is_zero(grid)) return;

  struct Prepared {
    soft::Dispatch dispatch;
    std::shared_ptr<Program> program;
    std::vector<std::shared_ptr<const void>> kept;
  };
  auto prepared = std::make_shared<Prepared>();
  prepared->program = program_;
  soft::Dispatch& d = prepared->dispatch;
  d.kernel = program_->kernel->host_name;
  d.trampoline = program_->kernel->trampoline;
  d.image = &program_->code->library->image;
  d.constants = &program_->constants;
  d.exact_threads = exact;
  const UInteger sizes[3] = {grid.width, grid.height, grid.depth};
  const UInteger per_group[3] = {threads.width, threads.height, threads.depth};
  for (int i = 0; i < 3; i++) {
    const UInteger groups = exact ? (sizes[i] + per_group[i] - 1) / per_group[i] : sizes[i];
    if (sizes[i] > UINT32_MAX || groups * per_group[i] > UINT32_MAX)
      return misuse("dispatch of '" + d.kernel + "': a grid of " + text(grid) + " has too many threads");
    d.threads_per_group[i] = uint32_t(per_group[i]);
    d.groups[i] = uint32_t(groups);
    d.threads[i] = uint32_t(exact ? sizes[i] : groups * per_group[i]);
  }
  if (!bind_arguments(d, prepared->kept)) return;
  if (dispatch_type == MTL::DispatchTypeSerial) epoch_ = next_epoch();
  d.epoch = epoch_;
  commands->commands.push_back({[prepared](CommandBuffer& buffer) { buffer.dispatch(prepared->dispatch); }});
}

void ComputeCommandEncoder::dispatch_threadgroups(MTL::Size groups, MTL::Size threads) {
  dispatch(groups, threads, false);
}

void ComputeCommandEncoder::dispatch_threads(MTL::Size grid, MTL::Size threads) {
  dispatch(grid, threads, true);
}

// ---- MTLBlitCommandEncoder ----

namespace {

bool range_is_valid(const Buffer* buffer, UInteger offset, UInteger size, const char* selector) {
  if (!buffer)
    misuse(std::string(selector) + ": nil");
  else if (offset % 4 != 0 || size % 4 != 0)
    misuse(std::string(selector) + ": offset and size must be multiples of 4");
  else if (size == 0)
    misuse(std::string(selector) + ": the size is zero");
  else if (offset > buffer->length() || size > buffer->length() - offset)
    misuse(std::string(selector) + ": " + std::to_string(size) + " bytes at offset " +
           std::to_string(offset) + " are beyond the buffer's " + std::to_string(buffer->length()));
  else
    return true;
  return false;
}

}  // namespace

void BlitCommandEncoder::fill(Buffer* buffer, NS::Range range, uint8_t value) {
  constexpr const char* kSelector = "fillBuffer:range:value:";
  if (!is_open(kSelector) || !range_is_valid(buffer, range.location, range.length, kSelector)) return;
  commands->use(buffer, buffer->memory);
  const UInteger offset = range.location, size = range.length;
  commands->commands.push_back({[memory = buffer->memory, offset, size, value](CommandBuffer&) {
    std::memset(memory->data + offset, value, size);
  }});
}

void BlitCommandEncoder::copy(Buffer* source, UInteger source_offset, Buffer* destination,
                              UInteger destination_offset, UInteger size) {
  constexpr const char* kSelector = "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:";
  if (!is_open(kSelector) || !range_is_valid(source, source_offset, size, kSelector) ||
      !range_is_valid(destination, destination_offset, size, kSelector))
    return;
  const UInteger distance = source_offset > destination_offset ? source_offset - destination_offset
                                                               : destination_offset - source_offset;
  if (source == destination && distance < size)
    return misuse(std::string(kSelector) + ": source and destination overlap");
  commands->use(source, source->memory);
  commands->use(destination, destination->memory);
  commands->commands.push_back({[from = source->memory, source_offset, to = destination->memory,
                                 destination_offset, size](CommandBuffer&) {
    std::memcpy(to->data + destination_offset, from->data + source_offset, size);
  }});
}

// Memory is shared: nothing to do.
void BlitCommandEncoder::synchronize(Buffer*) { is_open("synchronizeResource:"); }

namespace {

template <class Encoder>
Methods<Encoder> common_methods() {
  Methods<Encoder> methods;
  methods.template on<&CommandEncoder::end_encoding>("endEncoding");
  methods.template on<&CommandEncoder::push_debug_group>("pushDebugGroup:");
  methods.template on<&CommandEncoder::pop_debug_group>("popDebugGroup");
  methods.template on<&CommandEncoder::signpost>("insertDebugSignpost:");
  methods.template property<&CommandEncoder::device>("device");
  methods.template property<&CommandEncoder::label>("label", "setLabel:");
  return methods;
}

MTL::DispatchType dispatch_type_of(const ComputeCommandEncoder* encoder, SEL) {
  return encoder->dispatch_type;
}

const bool registered = [] {
  common_methods<ComputeCommandEncoder>()
      .on<&ComputeCommandEncoder::set_pipeline>("setComputePipelineState:")
      .on<&ComputeCommandEncoder::set_buffer>("setBuffer:offset:atIndex:")
      .on<&ComputeCommandEncoder::set_buffers>("setBuffers:offsets:withRange:")
      .on<&ComputeCommandEncoder::set_buffer_offset>("setBufferOffset:atIndex:")
      .on<&ComputeCommandEncoder::set_bytes>("setBytes:length:atIndex:")
      .on<&ComputeCommandEncoder::set_threadgroup_memory>("setThreadgroupMemoryLength:atIndex:")
      .on<&ComputeCommandEncoder::dispatch_threads>("dispatchThreads:threadsPerThreadgroup:")
      .on<&ComputeCommandEncoder::dispatch_threadgroups>("dispatchThreadgroups:threadsPerThreadgroup:")
      .on<&ComputeCommandEncoder::barrier>("memoryBarrierWithScope:")
      .on<&ComputeCommandEncoder::barrier_of>("memoryBarrierWithResources:count:")
      .on<&ComputeCommandEncoder::use_resource>("useResource:usage:")
      .on<&ComputeCommandEncoder::use_resources>("useResources:count:usage:")
      .on<&ComputeCommandEncoder::use_heap>("useHeap:")
      .on<&ComputeCommandEncoder::use_heaps>("useHeaps:count:");
  add_method(class_of<ComputeCommandEncoder>(), "dispatchType", reinterpret_cast<void*>(&dispatch_type_of));
  common_methods<BlitCommandEncoder>()
      .on<&BlitCommandEncoder::fill>("fillBuffer:range:value:")
      .on<&BlitCommandEncoder::copy>("copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:")
      .on<&BlitCommandEncoder::synchronize>("synchronizeResource:");
  return true;
}();

}  // namespace

}  // namespace metal
}  // namespace soft
