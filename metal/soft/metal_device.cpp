#include "metal_classes.h"
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <cstring>

namespace soft {
namespace metal {

namespace {

constexpr size_t kPage = 16384;  // of Apple's processors

size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

uint64_t number_from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

size_t physical_memory() { return size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE)); }

}  // namespace

Settings Settings::read() {
  Settings s;
  s.mode.check = number_from_environment("RLV_SOFT_CHECK", 0) != 0;
  s.mode.count = counting();
  s.mode.seed = number_from_environment("RLV_SOFT_SEED", 0);
  const uint64_t cores = std::max(1u, std::thread::hardware_concurrency());
  s.mode.workers = uint32_t(std::max<uint64_t>(1, number_from_environment("RLV_SOFT_THREADS", cores)));
  const uint64_t threads = number_from_environment("RLV_SOFT_MAX_THREADS", kMaxThreads);
  s.max_threads = uint32_t(std::min<uint64_t>(std::max<uint64_t>(threads, 1), kMaxThreads));
  return s;
}

// ---- memory ----

std::shared_ptr<Memory> Memory::map(size_t bytes) {
  const size_t inner = rounded_up(bytes, kGuardBytes);
  const size_t whole = inner + 2 * kGuardBytes;
  void* mapping = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  char* data = static_cast<char*>(mapping) + kGuardBytes;
  if (mprotect(data, inner, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, whole);
    return nullptr;
  }
  auto memory = std::make_shared<Memory>();
  memory->data = data;
  memory->bytes = bytes;
  memory->mapping_ = mapping;
  memory->mapped_bytes_ = whole;
  return memory;
}

std::shared_ptr<Memory> Memory::wrap(void* data, size_t bytes) {
  auto memory = std::make_shared<Memory>();
  memory->data = static_cast<char*>(data);
  memory->bytes = bytes;
  return memory;
}

Memory::~Memory() {
  shadow.reset();
  if (mapping_) munmap(mapping_, mapped_bytes_);
}

// ---- MTLBuffer ----

Buffer::~Buffer() {
  if (memory->borrowers > 0)
    misuse("a buffer of " + std::to_string(length()) +
           " bytes is deallocated while a command buffer without retained references uses it" +
           (label ? ": " + label->text : ""));
  if (heap)
    heap->give_back(heap_offset);
  else
    device->allocated -= rounded_up(length(), kPage);
  if (deallocator) (*deallocator)(static_cast<void*>(memory->data), length());
}

UInteger Buffer::allocated_bytes() const { return rounded_up(length(), heap ? Heap::kAlignment : kPage); }

MTL::HazardTrackingMode Buffer::hazard_tracking() const {
  if (options & MTL::ResourceHazardTrackingModeUntracked) return MTL::HazardTrackingModeUntracked;
  if (options & MTL::ResourceHazardTrackingModeTracked) return MTL::HazardTrackingModeTracked;
  return heap ? heap->hazard_tracking() : MTL::HazardTrackingModeTracked;
}

// ---- MTLHeap ----

void HeapDescriptor::assign(const HeapDescriptor& o) {
  size = o.size;
  storage = o.storage;
  hazard_tracking = o.hazard_tracking;
  cache_mode = o.cache_mode;
  type = o.type;
}

MTL::ResourceOptions HeapDescriptor::options() const {
  return MTL::ResourceOptions(UInteger(cache_mode) | UInteger(storage) << 4 | UInteger(hazard_tracking) << 8);
}

void HeapDescriptor::set_options(MTL::ResourceOptions options) {
  cache_mode = MTL::CPUCacheMode(options & 15);
  storage = MTL::StorageMode(options >> 4 & 15);
  hazard_tracking = MTL::HazardTrackingMode(options >> 8 & 3);
}

Heap::~Heap() { device->allocated -= rounded_up(size(), kPage); }

MTL::HazardTrackingMode Heap::hazard_tracking() const {
  return descriptor->hazard_tracking == MTL::HazardTrackingModeTracked ? MTL::HazardTrackingModeTracked
                                                                       : MTL::HazardTrackingModeUntracked;
}

bool Heap::find_room(size_t bytes, size_t& offset) const {
  size_t end = 0;
  for (const auto& [begin, used] : ranges) {
    if (begin - end >= bytes) break;
    end = begin + used;
  }
  offset = end;
  return end + bytes <= size();
}

Buffer* Heap::new_buffer(UInteger length, MTL::ResourceOptions buffer_options) {
  const auto wanted_storage = MTL::StorageMode(buffer_options >> 4 & 15);
  const auto wanted_tracking = MTL::HazardTrackingMode(buffer_options >> 8 & 3);
  if (length == 0) return misuse("heap newBufferWithLength: 0"), nullptr;
  if (type() != MTL::HeapTypeAutomatic)
    return misuse("newBufferWithLength:options: on a heap that is not MTLHeapTypeAutomatic"), nullptr;
  if (wanted_storage != storage()) return misuse("a buffer's storage mode must be its heap's"), nullptr;
  if (wanted_tracking != MTL::HazardTrackingModeDefault && wanted_tracking != hazard_tracking())
    return misuse("a buffer's hazard tracking mode must be its heap's"), nullptr;
  if (MTL::CPUCacheMode(buffer_options & 15) != cache_mode())
    return misuse("a buffer's CPU cache mode must be its heap's"), nullptr;

  size_t offset = 0;
  bool dirty = false;
  {
    std::lock_guard<std::mutex> lock(mutex);
    const size_t bytes = rounded_up(length, kAlignment);
    if (!find_room(bytes, offset)) return nullptr;
    ranges[offset] = bytes;
    dirty = recycled;
  }
  auto memory = Memory::map(length);
  if (!memory) {
    give_back(offset);
    return nullptr;
  }
  // What a heap hands out again holds what was left there.
  if (dirty) std::memset(memory->data, 0xfb, length);
  Buffer* buffer = make<Buffer>();
  buffer->device = device;
  buffer->heap = this;
  buffer->heap_offset = offset;
  buffer->memory = std::move(memory);
  buffer->options = buffer_options;
  return buffer;
}

void Heap::give_back(size_t offset) {
  std::lock_guard<std::mutex> lock(mutex);
  ranges.erase(offset);
  recycled = true;
}

UInteger Heap::used_bytes() {
  std::lock_guard<std::mutex> lock(mutex);
  size_t used = 0;
  for (const auto& range : ranges) used += range.second;
  return used;
}

UInteger Heap::available_bytes(UInteger alignment) {
  std::lock_guard<std::mutex> lock(mutex);
  const size_t unit = std::max<size_t>(alignment, 1);
  size_t largest = 0, end = 0;
  auto consider = [&](size_t gap_end) {
    const size_t begin = rounded_up(end, unit);
    if (gap_end > begin) largest = std::max(largest, gap_end - begin);
  };
  for (const auto& [begin, used] : ranges) {
    consider(begin);
    end = begin + used;
  }
  consider(size());
  return largest;
}

// ---- MTLSharedEvent ----

uint64_t Event::value() {
  std::lock_guard<std::mutex> lock(mutex);
  return signaled;
}

void Event::set(uint64_t value) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    signaled = value;
  }
  changed.notify_all();
}

void Event::wait(uint64_t value) {
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [&] { return signaled >= value; });
}

bool Event::wait_for(uint64_t value, uint64_t milliseconds) {
  constexpr uint64_t kLong = uint64_t(1000) * 3600 * 24 * 365;  // "forever" must not overflow the clock
  std::unique_lock<std::mutex> lock(mutex);
  return changed.wait_for(lock, std::chrono::milliseconds(std::min(milliseconds, kLong)),
                          [&] { return signaled >= value; });
}

// ---- MTLDevice ----

String* Device::name() const { return foundation::string("software Metal"); }

// What an M1 says.
bool Device::supports_family(MTL::GPUFamily family) const {
  const auto within = [&](MTL::GPUFamily first, MTL::GPUFamily last) {
    return family >= first && family <= last;
  };
  return within(MTL::GPUFamilyApple1, MTL::GPUFamilyApple7) || family == MTL::GPUFamilyMac2 ||
         within(MTL::GPUFamilyCommon1, MTL::GPUFamilyCommon3) || family == MTL::GPUFamilyMetal3;
}

UInteger Device::max_buffer_length() const { return physical_memory() / 2 / kPage * kPage; }
UInteger Device::working_set() const { return physical_memory() / 3 * 2; }

MTL::SizeAndAlign Device::heap_buffer_size(UInteger length, MTL::ResourceOptions) const {
  MTL::SizeAndAlign result;
  result.size = rounded_up(length, Heap::kAlignment);
  result.align = Heap::kAlignment;
  return result;
}

Buffer* Device::new_buffer(UInteger length, MTL::ResourceOptions options) {
  if (length == 0) return misuse("newBufferWithLength: 0"), nullptr;
  if (length > max_buffer_length())
    return misuse("newBufferWithLength: " + std::to_string(length) + " is more than maxBufferLength, " +
                  std::to_string(max_buffer_length())),
           nullptr;
  auto memory = Memory::map(length);
  if (!memory) return nullptr;
  Buffer* buffer = make<Buffer>();
  buffer->device = this;
  buffer->memory = std::move(memory);
  buffer->options = options;
  allocated += rounded_up(length, kPage);
  return buffer;
}

Buffer* Device::new_buffer_of_bytes(const void* bytes, UInteger length, MTL::ResourceOptions options) {
  Buffer* buffer = new_buffer(length, options);
  if (buffer) std::memcpy(buffer->memory->data, bytes, length);
  return buffer;
}

Buffer* Device::new_buffer_no_copy(void* bytes, UInteger length, MTL::ResourceOptions options,
                                   const void* deallocator) {
  if (!bytes || length == 0 || reinterpret_cast<uintptr_t>(bytes) % kPage != 0 || length % kPage != 0)
    return misuse("newBufferWithBytesNoCopy: address and length must be multiples of " +
                  std::to_string(kPage)),
           nullptr;
  Buffer* buffer = make<Buffer>();
  buffer->device = this;
  buffer->memory = Memory::wrap(bytes, length);
  buffer->options = options;
  if (deallocator) buffer->deallocator = std::make_unique<Block>(deallocator);
  allocated += length;
  return buffer;
}

Heap* Device::new_heap(HeapDescriptor* descriptor) {
  if (!descriptor) return misuse("newHeapWithDescriptor: nil"), nullptr;
  if (descriptor->size == 0) return misuse("newHeapWithDescriptor: the size is 0"), nullptr;
  if (allocated + descriptor->size > physical_memory()) return nullptr;
  Heap* heap = make<Heap>();
  heap->device = this;
  heap->descriptor = Ref<HeapDescriptor>::adopt(make<HeapDescriptor>());
  heap->descriptor->assign(*descriptor);
  allocated += rounded_up(descriptor->size, kPage);
  return heap;
}

CommandQueue* Device::new_queue() { return new_queue_of(64); }

CommandQueue* Device::new_queue_of(UInteger max_command_buffers) {
  if (max_command_buffers == 0) return misuse("newCommandQueueWithMaxCommandBufferCount: 0"), nullptr;
  return make<CommandQueue>(this, max_command_buffers);
}

Event* Device::new_shared_event() {
  Event* event = make<Event>();
  event->device = this;
  return event;
}

Event* Device::new_event() { return new_shared_event(); }

namespace {

bool yes(const Device*, SEL) { return true; }

const bool registered = [] {
  Methods<Device>()
      .on<&Device::name>("name")
      .on<&Device::supports_family>("supportsFamily:")
      .on<&Device::max_threads_per_threadgroup>("maxThreadsPerThreadgroup")
      .on<&Device::max_threadgroup_memory>("maxThreadgroupMemoryLength")
      .on<&Device::max_buffer_length>("maxBufferLength")
      .on<&Device::working_set>("recommendedMaxWorkingSetSize")
      .on<&Device::allocated_bytes>("currentAllocatedSize")
      .on<&Device::heap_buffer_size>("heapBufferSizeAndAlignWithLength:options:")
      .on<&Device::new_buffer>("newBufferWithLength:options:")
      .on<&Device::new_buffer_of_bytes>("newBufferWithBytes:length:options:")
      .on<&Device::new_buffer_no_copy>("newBufferWithBytesNoCopy:length:options:deallocator:")
      .on<&Device::new_heap>("newHeapWithDescriptor:")
      .on<&Device::new_queue>("newCommandQueue")
      .on<&Device::new_queue_of>("newCommandQueueWithMaxCommandBufferCount:")
      .on<&Device::new_library>("newLibraryWithSource:options:error:")
      .on<&Device::new_pipeline>("newComputePipelineStateWithFunction:error:")
      .on<&Device::new_pipeline_reflected>("newComputePipelineStateWithFunction:options:reflection:error:")
      .on<&Device::new_pipeline_described>("newComputePipelineStateWithDescriptor:options:reflection:error:")
      .on<&Device::new_archive>("newBinaryArchiveWithDescriptor:error:")
      .on<&Device::new_event>("newEvent")
      .on<&Device::new_shared_event>("newSharedEvent");
  add_method(class_of<Device>(), "hasUnifiedMemory", reinterpret_cast<void*>(&yes));
  Methods<Buffer>()
      .on<&Buffer::contents>("contents")
      .on<&Buffer::length>("length")
      .on<&Buffer::address>("gpuAddress")
      .on<&Buffer::allocated_bytes>("allocatedSize")
      .on<&Buffer::storage>("storageMode")
      .on<&Buffer::hazard_tracking>("hazardTrackingMode")
      .on<&Buffer::cache_mode>("cpuCacheMode")
      .property<&Buffer::device>("device")
      .property<&Buffer::heap>("heap")
      .property<&Buffer::heap_offset>("heapOffset")
      .property<&Buffer::options>("resourceOptions")
      .property<&Buffer::label>("label", "setLabel:");
  Methods<HeapDescriptor>()
      .allocates()
      .copies()
      .on<&HeapDescriptor::options>("resourceOptions")
      .on<&HeapDescriptor::set_options>("setResourceOptions:")
      .property<&HeapDescriptor::size>("size", "setSize:")
      .property<&HeapDescriptor::storage>("storageMode", "setStorageMode:")
      .property<&HeapDescriptor::hazard_tracking>("hazardTrackingMode", "setHazardTrackingMode:")
      .property<&HeapDescriptor::cache_mode>("cpuCacheMode", "setCpuCacheMode:")
      .property<&HeapDescriptor::type>("type", "setType:");
  Methods<Heap>()
      .on<&Heap::new_buffer>("newBufferWithLength:options:")
      .on<&Heap::used_bytes>("usedSize")
      .on<&Heap::available_bytes>("maxAvailableSizeWithAlignment:")
      .on<&Heap::size>("size")
      .on<&Heap::size>("currentAllocatedSize")
      .on<&Heap::storage>("storageMode")
      .on<&Heap::hazard_tracking>("hazardTrackingMode")
      .on<&Heap::cache_mode>("cpuCacheMode")
      .on<&Heap::type>("type")
      .on<&Heap::options>("resourceOptions")
      .property<&Heap::device>("device")
      .property<&Heap::label>("label", "setLabel:");
  Methods<Event>()
      .on<&Event::value>("signaledValue")
      .on<&Event::set>("setSignaledValue:")
      .on<&Event::wait_for>("waitUntilSignaledValue:timeoutMS:")
      .property<&Event::device>("device")
      .property<&Event::label>("label", "setLabel:");
  return true;
}();

}  // namespace

}  // namespace metal
}  // namespace soft

using soft::metal::Device;

SOFT_EXPORT MTL::Device* MTLCreateSystemDefaultDevice() {
  return reinterpret_cast<MTL::Device*>(soft::make<Device>());
}

SOFT_EXPORT NS::Array* MTLCopyAllDevices() {
  const auto device = soft::Ref<Device>::adopt(soft::make<Device>());
  auto* all = soft::make<soft::foundation::Array>();
  all->objects.emplace_back(device.get());
  return reinterpret_cast<NS::Array*>(all);
}

// Devices never come or go.
SOFT_EXPORT NS::Array* MTLCopyAllDevicesWithObserver(NS::Object** observer,
                                                     MTL::DeviceNotificationHandlerBlock) {
  if (observer) *observer = nullptr;
  return MTLCopyAllDevices();
}

SOFT_EXPORT void MTLRemoveDeviceObserver(const NS::Object*) {}
