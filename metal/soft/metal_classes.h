// Software Metal: the classes behind Metal's protocols. Selectors are bound to their members at the end of
// each metal_*.cpp; types and constants are metal-cpp's own.
#pragma once
#include <Metal/Metal.hpp>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>
#include "compiler.h"
#include "executor.h"
#include "foundation.h"

namespace soft {
namespace metal {

using foundation::Array;
using foundation::Error;
using foundation::String;
using NS::UInteger;

// From the environment, when a device is made.
struct Settings {
  Mode mode;
  uint32_t max_threads = kMaxThreads;  // what pipelines allow in a threadgroup
  static Settings read();
};

// What a command buffer without retained references only borrows: its owner must keep it until the end.
struct Borrowable {
  std::atomic<int> borrowers{0};
};

// Zeroed pages between pages that fault.
class Memory : public Borrowable {
 public:
  static std::shared_ptr<Memory> map(size_t bytes);  // null if there is no more
  static std::shared_ptr<Memory> wrap(void* data, size_t bytes);
  ~Memory();

  char* data = nullptr;
  size_t bytes = 0;
  ShadowPtr shadow;

 private:
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
};

// ---- metal_device.cpp ----

struct Buffer;
struct CommandQueue;
struct ComputePipelineState;
struct ComputePipelineDescriptor;
struct CompileOptions;
struct BinaryArchive;
struct BinaryArchiveDescriptor;
struct Function;
struct Heap;
struct HeapDescriptor;
struct Library;
struct Event;

struct Device : Object {
  static constexpr const char* kClass = "MTLDevice";

  Device() : settings(Settings::read()) {}
  String* name() const;
  bool supports_family(MTL::GPUFamily family) const;
  MTL::Size max_threads_per_threadgroup() const { return MTL::Size(kMaxThreads, kMaxThreads, kMaxThreads); }
  UInteger max_threadgroup_memory() const { return kThreadgroupMemory; }
  UInteger max_buffer_length() const;
  UInteger working_set() const;
  UInteger allocated_bytes() const { return allocated; }
  MTL::SizeAndAlign heap_buffer_size(UInteger length, MTL::ResourceOptions options) const;

  Buffer* new_buffer(UInteger length, MTL::ResourceOptions options);
  Buffer* new_buffer_of_bytes(const void* bytes, UInteger length, MTL::ResourceOptions options);
  Buffer* new_buffer_no_copy(void* bytes, UInteger length, MTL::ResourceOptions options,
                             const void* deallocator);
  Heap* new_heap(HeapDescriptor* descriptor);
  CommandQueue* new_queue();
  CommandQueue* new_queue_of(UInteger max_command_buffers);
  Library* new_library(String* source, CompileOptions* options, Error** error);
  ComputePipelineState* new_pipeline(Function* function, Error** error);
  ComputePipelineState* new_pipeline_reflected(Function* function, MTL::PipelineOption options,
                                               Object** reflection, Error** error);
  ComputePipelineState* new_pipeline_described(ComputePipelineDescriptor* descriptor,
                                               MTL::PipelineOption options, Object** reflection,
                                               Error** error);
  BinaryArchive* new_archive(BinaryArchiveDescriptor* descriptor, Error** error);
  Event* new_event();
  Event* new_shared_event();

  const Settings settings;
  std::atomic<size_t> allocated{0};
};

struct Buffer : Object {
  static constexpr const char* kClass = "MTLBuffer";

  ~Buffer();
  void* contents() const { return storage() == MTL::StorageModePrivate ? nullptr : memory->data; }
  UInteger length() const { return memory->bytes; }
  UInteger address() const { return reinterpret_cast<UInteger>(memory->data); }
  UInteger allocated_bytes() const;
  MTL::StorageMode storage() const { return MTL::StorageMode(options >> 4 & 15); }
  MTL::HazardTrackingMode hazard_tracking() const;
  MTL::CPUCacheMode cache_mode() const { return MTL::CPUCacheMode(options & 15); }

  Ref<Device> device;
  Ref<Heap> heap;
  size_t heap_offset = 0;
  std::shared_ptr<Memory> memory;
  MTL::ResourceOptions options = MTL::ResourceStorageModeShared;
  std::unique_ptr<Block> deallocator;  // of memory that is not ours
  Ref<String> label;
};

struct HeapDescriptor : Object {
  static constexpr const char* kClass = "MTLHeapDescriptor";

  void assign(const HeapDescriptor& o);
  MTL::ResourceOptions options() const;
  void set_options(MTL::ResourceOptions options);

  UInteger size = 0;
  MTL::StorageMode storage = MTL::StorageModePrivate;
  MTL::HazardTrackingMode hazard_tracking = MTL::HazardTrackingModeDefault;
  MTL::CPUCacheMode cache_mode = MTL::CPUCacheModeDefaultCache;
  MTL::HeapType type = MTL::HeapTypeAutomatic;
};

// Hands out ranges of its size as Metal does, so that it fills up and fragments; the memory behind each
// buffer is its own, between guard pages.
struct Heap : Object {
  static constexpr const char* kClass = "MTLHeap";
  static constexpr size_t kAlignment = 256;

  ~Heap();
  Buffer* new_buffer(UInteger length, MTL::ResourceOptions options);
  void give_back(size_t offset);
  UInteger used_bytes();
  UInteger available_bytes(UInteger alignment);
  MTL::HazardTrackingMode hazard_tracking() const;
  MTL::ResourceOptions options() const { return descriptor->options(); }
  UInteger size() const { return descriptor->size; }
  MTL::StorageMode storage() const { return descriptor->storage; }
  MTL::CPUCacheMode cache_mode() const { return descriptor->cache_mode; }
  MTL::HeapType type() const { return descriptor->type; }

  Ref<Device> device;
  Ref<HeapDescriptor> descriptor;
  Ref<String> label;
  std::mutex mutex;
  std::map<size_t, size_t> ranges;  // bytes in use, by offset
  bool recycled = false;            // something was given back: memory is no longer zero

 private:
  // The first free range of so many bytes; false if there is none.
  bool find_room(size_t bytes, size_t& offset) const;
};

struct Event : Object {
  static constexpr const char* kClass = "MTLSharedEvent";

  uint64_t value();
  void set(uint64_t value);
  void wait(uint64_t value);
  bool wait_for(uint64_t value, uint64_t milliseconds);

  Ref<Device> device;
  Ref<String> label;
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t signaled = 0;
};

// ---- metal_library.cpp ----

struct CompileOptions : Object {
  static constexpr const char* kClass = "MTLCompileOptions";

  void assign(const CompileOptions& o);
  bool fast_math() const { return math_mode == MTL::MathModeFast; }
  void set_fast_math(bool fast) { math_mode = fast ? MTL::MathModeFast : MTL::MathModeSafe; }

  MTL::MathMode math_mode = MTL::MathModeFast;
  MTL::MathFloatingPointFunctions functions = MTL::MathFloatingPointFunctionsFast;
  MTL::LanguageVersion language = MTL::LanguageVersion3_1;
  MTL::LibraryOptimizationLevel optimization = MTL::LibraryOptimizationLevelDefault;
  bool preserve_invariance = false;
  Ref<foundation::Dictionary> macros;
};

// Compiled code, as long as anything needs it.
struct Code {
  std::unique_ptr<soft::Library> library;
  uint64_t hash = 0;  // of source and options
};

struct FunctionConstantValues : Object {
  static constexpr const char* kClass = "MTLFunctionConstantValues";
  struct Value {
    uint64_t bits = 0;
    MTL::DataType type = MTL::DataTypeNone;
  };

  void assign(const FunctionConstantValues& o);
  void set(const void* value, MTL::DataType type, UInteger index);
  void set_range(const void* values, MTL::DataType type, NS::Range range);
  void set_named(const void* value, MTL::DataType type, String* name);
  void reset();

  std::map<int, Value> by_index;
  std::map<std::string, Value> by_name;
};

struct Library : Object {
  static constexpr const char* kClass = "MTLLibrary";

  Array* function_names() const;
  Function* new_function(String* name);
  Function* new_function_with(String* name, FunctionConstantValues* values, Error** error);

  Ref<Device> device;
  std::shared_ptr<const Code> code;
  Ref<String> label;
};

struct Function : Object {
  static constexpr const char* kClass = "MTLFunction";

  String* name() const;
  MTL::FunctionType type() const { return MTL::FunctionTypeKernel; }
  // "NAME INDEX=VALUE ...": what distinguishes specialisations.
  std::string description() const;

  Ref<Device> device;
  std::shared_ptr<const Code> code;
  const Kernel* kernel = nullptr;
  std::map<int, uint64_t> constants;
  Ref<String> label;
};

struct ComputePipelineDescriptor : Object {
  static constexpr const char* kClass = "MTLComputePipelineDescriptor";

  void assign(const ComputePipelineDescriptor& o);
  void reset() { assign(ComputePipelineDescriptor()); }

  Ref<Function> function;
  Ref<String> label;
  Ref<Array> archives;
  bool multiple_of_width = false;
  UInteger max_threads = 0;  // 0: no limit asked for
  bool indirect = false;
};

// What a dispatch needs of a pipeline: outlives the object while in flight.
struct Program : Borrowable {
  std::shared_ptr<const Code> code;
  const Kernel* kernel = nullptr;
  std::map<int, uint64_t> constants;
  uint32_t max_threads = kMaxThreads;
  bool multiple_of_width = false;
};

struct ComputePipelineState : Object {
  static constexpr const char* kClass = "MTLComputePipelineState";

  ~ComputePipelineState();
  UInteger max_threads() const { return program->max_threads; }
  UInteger width() const { return kLanes; }
  // The executor's matter: not known before a kernel runs.
  UInteger static_memory() const { return 0; }

  Ref<Device> device;
  Ref<String> label;
  std::shared_ptr<Program> program;
};

struct BinaryArchiveDescriptor : Object {
  static constexpr const char* kClass = "MTLBinaryArchiveDescriptor";

  void assign(const BinaryArchiveDescriptor& o) { url = o.url; }

  Ref<foundation::Url> url;
};

// Holds no code, only which pipelines it would hold: source, kernel, constants.
struct BinaryArchive : Object {
  static constexpr const char* kClass = "MTLBinaryArchive";

  bool load(const std::string& path, std::string& why);
  bool add(ComputePipelineDescriptor* descriptor, Error** error);
  bool serialize(foundation::Url* url, Error** error);
  bool contains(const Function& function);

  Ref<Device> device;
  Ref<String> label;
  std::mutex mutex;
  std::map<std::string, bool> pipelines;
};

// ---- metal_queue.cpp ----

struct CommandBuffer;
struct CommandEncoder;
struct ComputeCommandEncoder;
struct BlitCommandEncoder;

struct CommandBufferDescriptor : Object {
  static constexpr const char* kClass = "MTLCommandBufferDescriptor";

  void assign(const CommandBufferDescriptor& o);

  MTL::CommandBufferErrorOption error_options = MTL::CommandBufferErrorOptionNone;
  bool retained = true;
};

// The thread that runs what is committed to a queue. Outlives the queue object until it has let go of
// everything.
struct QueueThread {
  void run();

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Ref<CommandBuffer>> committed;
  UInteger open = 0;  // command buffers made and not completed
  bool closing = false;
};

struct CommandQueue : Object {
  static constexpr const char* kClass = "MTLCommandQueue";

  CommandQueue(Device* its_device, UInteger max_command_buffers);
  ~CommandQueue();
  CommandBuffer* command_buffer();
  CommandBuffer* command_buffer_unretained();
  CommandBuffer* command_buffer_described(CommandBufferDescriptor* descriptor);

  Ref<Device> device;
  Ref<String> label;

 private:
  CommandBuffer* make_command_buffer(bool retained, MTL::CommandBufferErrorOption error_options);

  const UInteger limit_;
  std::shared_ptr<QueueThread> state_;
  std::thread thread_;
};

// One entry of a command buffer. Signals are given even after a fault, all else is skipped.
struct Command {
  std::function<void(CommandBuffer&)> run;
  bool always = false;
};

struct CommandBuffer : Object {
  static constexpr const char* kClass = "MTLCommandBuffer";

  ~CommandBuffer();
  ComputeCommandEncoder* compute_encoder();
  ComputeCommandEncoder* compute_encoder_of(MTL::DispatchType type);
  BlitCommandEncoder* blit_encoder();
  void commit();
  void wait_until_completed();
  void wait_until_scheduled();
  MTL::CommandBufferStatus status();
  Error* error();
  void add_completed_handler(const void* block);
  void add_scheduled_handler(const void* block);
  void encode_signal(Event* event, uint64_t value);
  void encode_wait(Event* event, uint64_t value);
  void push_debug_group(String*) {}
  void pop_debug_group() {}

  // Keeps an object that commands use, or only its resource if references are not retained.
  void use(Object* owner, const std::shared_ptr<Borrowable>& resource);
  // On the queue's thread.
  void execute();
  void dispatch(soft::Dispatch& dispatch);
  void let_go();

  Ref<Device> device;
  Ref<CommandQueue> queue;
  std::shared_ptr<QueueThread> thread;
  bool retained = true;
  MTL::CommandBufferErrorOption error_options = MTL::CommandBufferErrorOptionNone;
  Ref<String> label;
  CommandEncoder* encoder = nullptr;  // the one that has not ended
  std::vector<Command> commands;
  double gpu_start = 0, gpu_end = 0;  // seconds of the monotonic clock

 private:
  bool may_encode(const char* what);
  void set_status(MTL::CommandBufferStatus status);

  std::vector<Ref<Object>> kept_;
  std::vector<std::shared_ptr<Borrowable>> borrowed_;
  std::unordered_set<const void*> used_;
  std::vector<Block> completed_handlers_, scheduled_handlers_;
  std::string faults_;  // one a line
  bool aborted_ = false;
  bool counted_ = true;  // among the queue's open ones

  std::mutex mutex_;
  std::condition_variable changed_;
  MTL::CommandBufferStatus status_ = MTL::CommandBufferStatusNotEnqueued;
  bool finished_ = false;  // handlers have run
  Ref<Error> error_;

  friend struct QueueThread;
  friend struct CommandQueue;
};

// Waits, at most some seconds, until no queue's thread holds anything.
void wait_until_idle();

// ---- metal_encoder.cpp ----

struct CommandEncoder : Object {
  explicit CommandEncoder(CommandBuffer* buffer);
  ~CommandEncoder();
  void end_encoding();
  void push_debug_group(String* name);
  void pop_debug_group();
  void signpost(String* name);

  // False, and reported, after endEncoding.
  bool is_open(const char* selector) const;

  Ref<CommandBuffer> commands;
  Ref<Device> device;
  Ref<String> label;
  bool ended = false;
  int debug_groups = 0;
};

struct ComputeCommandEncoder : CommandEncoder {
  static constexpr const char* kClass = "MTLComputeCommandEncoder";

  ComputeCommandEncoder(CommandBuffer* buffer, MTL::DispatchType type);
  void set_pipeline(ComputePipelineState* pipeline);
  void set_buffer(Buffer* buffer, UInteger offset, UInteger index);
  void set_buffers(Buffer* const* buffers, const UInteger* offsets, NS::Range range);
  void set_buffer_offset(UInteger offset, UInteger index);
  void set_bytes(const void* bytes, UInteger length, UInteger index);
  void set_threadgroup_memory(UInteger length, UInteger index);
  void dispatch_threadgroups(MTL::Size groups, MTL::Size threads);
  void dispatch_threads(MTL::Size grid, MTL::Size threads);
  void barrier(MTL::BarrierScope scope);
  void barrier_of(Object* const* resources, UInteger count);
  void use_resource(Buffer* resource, MTL::ResourceUsage usage);
  void use_resources(Buffer* const* resources, UInteger count, MTL::ResourceUsage usage);
  void use_heap(Heap* heap);
  void use_heaps(Heap* const* heaps, UInteger count);

  const MTL::DispatchType dispatch_type;

 private:
  struct Slot {
    std::shared_ptr<Memory> memory;  // of a buffer
    std::shared_ptr<const std::vector<char>> bytes;
    size_t offset = 0;
    bool bound() const { return memory || bytes; }
  };

  void dispatch(MTL::Size grid, MTL::Size threads, bool exact);
  bool threads_are_valid(MTL::Size threads) const;
  bool bind_arguments(soft::Dispatch& dispatch, std::vector<std::shared_ptr<const void>>& kept) const;
  bool bind(const Argument& argument, soft::Dispatch& dispatch,
            std::vector<std::shared_ptr<const void>>& kept) const;
  bool is_required(const Argument& argument) const;

  std::shared_ptr<Program> program_;
  Slot slots_[kMaxBuffers];
  size_t threadgroup_bytes_[kMaxBuffers] = {};
  uint64_t epoch_ = 0;
};

struct BlitCommandEncoder : CommandEncoder {
  static constexpr const char* kClass = "MTLBlitCommandEncoder";

  explicit BlitCommandEncoder(CommandBuffer* buffer) : CommandEncoder(buffer) {}
  void fill(Buffer* buffer, NS::Range range, uint8_t value);
  void copy(Buffer* source, UInteger source_offset, Buffer* destination, UInteger destination_offset,
            UInteger size);
  void synchronize(Buffer* resource);
};

// ---- metal_exports.cpp ----

void count(const std::string& kernel, const Counts& counts);
bool counting();            // what soft_counting said
uint32_t sampled_groups();  // what soft_sample_groups said

}  // namespace metal
}  // namespace soft
