// Command queues and buffers. Each queue has a thread that stands for the GPU: it runs what is committed, in
// order.
#include "metal_classes.h"

#include <chrono>

namespace soft {
namespace metal {

namespace {

constexpr const char* kErrorDomain = "MTLCommandBufferErrorDomain";

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Command buffers whose thread has not let go of them.
struct Activity {
  std::mutex mutex;
  std::condition_variable idle;
  long running = 0;

  void begin() {
    std::lock_guard<std::mutex> lock(mutex);
    running++;
  }
  void end() {
    std::lock_guard<std::mutex> lock(mutex);
    if (--running == 0) idle.notify_all();
  }
};

Activity& activity() {
  static Activity* const a = new Activity;
  return *a;
}

}  // namespace

void wait_until_idle() {
  Activity& a = activity();
  std::unique_lock<std::mutex> lock(a.mutex);
  a.idle.wait_for(lock, std::chrono::seconds(5), [&] { return a.running == 0; });
}

// ---- MTLCommandQueue ----

CommandQueue::CommandQueue(Device* its_device, UInteger max_command_buffers)
    : device(its_device), limit_(max_command_buffers), state_(std::make_shared<QueueThread>()) {
  thread_ = std::thread([state = state_] { state->run(); });
}

// The last reference may be that of a command buffer the thread itself lets go of.
CommandQueue::~CommandQueue() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->closing = true;
  }
  state_->changed.notify_all();
  if (thread_.get_id() == std::this_thread::get_id())
    thread_.detach();
  else
    thread_.join();
}

CommandBuffer* CommandQueue::make_command_buffer(bool retained, MTL::CommandBufferErrorOption error_options) {
  constexpr auto kPatience = std::chrono::seconds(60);
  {
    std::unique_lock<std::mutex> lock(state_->mutex);
    if (!state_->changed.wait_for(lock, kPatience, [&] { return state_->open < limit_; }))
      return misuse("commandBuffer waits without end: all " + std::to_string(limit_) +
                    " command buffers of the queue are in use"),
             nullptr;
    state_->open++;
  }
  CommandBuffer* buffer = make<CommandBuffer>();
  buffer->device = device;
  buffer->queue = this;
  buffer->thread = state_;
  buffer->retained = retained;
  buffer->error_options = error_options;
  return autoreleased(buffer);
}

CommandBuffer* CommandQueue::command_buffer() {
  return make_command_buffer(true, MTL::CommandBufferErrorOptionNone);
}

CommandBuffer* CommandQueue::command_buffer_unretained() {
  return make_command_buffer(false, MTL::CommandBufferErrorOptionNone);
}

CommandBuffer* CommandQueue::command_buffer_described(CommandBufferDescriptor* descriptor) {
  if (!descriptor) return misuse("commandBufferWithDescriptor: nil"), nullptr;
  return make_command_buffer(descriptor->retained, descriptor->error_options);
}

void CommandBufferDescriptor::assign(const CommandBufferDescriptor& o) {
  error_options = o.error_options;
  retained = o.retained;
}

void QueueThread::run() {
  for (;;) {
    Ref<CommandBuffer> buffer;
    {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [&] { return closing || !committed.empty(); });
      if (committed.empty()) return;
      buffer = std::move(committed.front());
      committed.pop_front();
    }
    {
      const PoolScope pool;
      buffer->execute();
    }
    buffer = nullptr;
    activity().end();
  }
}

// ---- MTLCommandBuffer: encoding ----

CommandBuffer::~CommandBuffer() { let_go(); }

// Back to the queue: its place and everything it held.
void CommandBuffer::let_go() {
  commands.clear();
  kept_.clear();
  for (const auto& resource : borrowed_) resource->borrowers--;
  borrowed_.clear();
  used_.clear();
  if (!std::exchange(counted_, false)) return;
  {
    std::lock_guard<std::mutex> lock(thread->mutex);
    thread->open--;
  }
  thread->changed.notify_all();
}

void CommandBuffer::use(Object* owner, const std::shared_ptr<Borrowable>& resource) {
  if (!used_.insert(resource.get()).second) return;
  if (retained) {
    kept_.emplace_back(owner);
  } else {
    resource->borrowers++;
    borrowed_.push_back(resource);
  }
}

bool CommandBuffer::may_encode(const char* what) {
  if (status() >= MTL::CommandBufferStatusCommitted) {
    misuse(std::string(what) + ": the command buffer is committed already");
    return false;
  }
  if (encoder) {
    misuse(std::string(what) + ": another encoder of this command buffer has not ended");
    return false;
  }
  return true;
}

ComputeCommandEncoder* CommandBuffer::compute_encoder() {
  return compute_encoder_of(MTL::DispatchTypeSerial);
}

ComputeCommandEncoder* CommandBuffer::compute_encoder_of(MTL::DispatchType type) {
  if (!may_encode("computeCommandEncoder")) return nullptr;
  return autoreleased(make<ComputeCommandEncoder>(this, type));
}

BlitCommandEncoder* CommandBuffer::blit_encoder() {
  if (!may_encode("blitCommandEncoder")) return nullptr;
  return autoreleased(make<BlitCommandEncoder>(this));
}

void CommandBuffer::encode_signal(Event* event, uint64_t value) {
  if (!may_encode("encodeSignalEvent:value:")) return;
  if (!event) return misuse("encodeSignalEvent: nil");
  commands.push_back({[event = Ref<Event>(event), value](CommandBuffer&) { event->set(value); }, true});
}

void CommandBuffer::encode_wait(Event* event, uint64_t value) {
  if (!may_encode("encodeWaitForEvent:value:")) return;
  if (!event) return misuse("encodeWaitForEvent: nil");
  commands.push_back({[event = Ref<Event>(event), value](CommandBuffer&) { event->wait(value); }, false});
}

void CommandBuffer::add_completed_handler(const void* block) {
  if (status() >= MTL::CommandBufferStatusCommitted) return misuse("addCompletedHandler: after commit");
  completed_handlers_.emplace_back(block);
}

void CommandBuffer::add_scheduled_handler(const void* block) {
  if (status() >= MTL::CommandBufferStatusCommitted) return misuse("addScheduledHandler: after commit");
  scheduled_handlers_.emplace_back(block);
}

void CommandBuffer::commit() {
  if (status() >= MTL::CommandBufferStatusCommitted)
    return misuse("commit: the command buffer is committed already");
  if (encoder) return misuse("commit: an encoder of this command buffer has not ended");
  set_status(MTL::CommandBufferStatusCommitted);
  activity().begin();
  {
    std::lock_guard<std::mutex> lock(thread->mutex);
    thread->committed.emplace_back(this);
  }
  thread->changed.notify_all();
}

// ---- MTLCommandBuffer: what became of it ----

void CommandBuffer::set_status(MTL::CommandBufferStatus status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
  }
  changed_.notify_all();
}

MTL::CommandBufferStatus CommandBuffer::status() {
  std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

Error* CommandBuffer::error() {
  std::lock_guard<std::mutex> lock(mutex_);
  return error_.get();
}

void CommandBuffer::wait_until_scheduled() {
  if (status() < MTL::CommandBufferStatusCommitted)
    return misuse("waitUntilScheduled: the command buffer is not committed, this would wait for ever");
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return status_ >= MTL::CommandBufferStatusScheduled; });
}

void CommandBuffer::wait_until_completed() {
  if (status() < MTL::CommandBufferStatusCommitted)
    return misuse("waitUntilCompleted: the command buffer is not committed, this would wait for ever");
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return finished_; });
}

// ---- MTLCommandBuffer: on the queue's thread ----

void CommandBuffer::dispatch(soft::Dispatch& dispatch) {
  Mode mode = device->settings.mode;
  if (mode.count) mode.sample_groups = sampled_groups();
  const Outcome outcome = soft::execute(dispatch, mode);
  if (mode.count) count(dispatch.kernel, outcome.counts);
  for (const Report& report : outcome.reports)
    faults_ += (faults_.empty() ? "" : "\n") + describe(dispatch.kernel, report);
  if (outcome.aborted && outcome.reports.empty())
    faults_ += (faults_.empty() ? "" : "\n") + ("kernel '" + dispatch.kernel + "' was ended");
  aborted_ = aborted_ || outcome.aborted;
}

void CommandBuffer::execute() {
  set_status(MTL::CommandBufferStatusScheduled);
  for (const Block& handler : scheduled_handlers_) handler(this);
  gpu_start = seconds_now();
  for (const Command& command : commands)
    if (command.always || !aborted_) command.run(*this);
  gpu_end = seconds_now();
  // The place in the queue and the resources are free before anyone hears of it.
  let_go();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!faults_.empty())
      error_ = Ref<Error>(foundation::error(kErrorDomain, MTL::CommandBufferErrorPageFault, faults_));
    status_ = faults_.empty() ? MTL::CommandBufferStatusCompleted : MTL::CommandBufferStatusError;
  }
  for (const Block& handler : completed_handlers_) handler(this);
  scheduled_handlers_.clear();
  completed_handlers_.clear();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ = true;
  }
  changed_.notify_all();
}

namespace {

const bool registered = [] {
  Methods<CommandBufferDescriptor>()
      .allocates()
      .copies()
      .property<&CommandBufferDescriptor::error_options>("errorOptions", "setErrorOptions:")
      .property<&CommandBufferDescriptor::retained>("retainedReferences", "setRetainedReferences:");
  Methods<CommandQueue>()
      .on<&CommandQueue::command_buffer>("commandBuffer")
      .on<&CommandQueue::command_buffer_unretained>("commandBufferWithUnretainedReferences")
      .on<&CommandQueue::command_buffer_described>("commandBufferWithDescriptor:")
      .property<&CommandQueue::device>("device")
      .property<&CommandQueue::label>("label", "setLabel:");
  Methods<CommandBuffer>()
      .on<&CommandBuffer::compute_encoder>("computeCommandEncoder")
      .on<&CommandBuffer::compute_encoder_of>("computeCommandEncoderWithDispatchType:")
      .on<&CommandBuffer::blit_encoder>("blitCommandEncoder")
      .on<&CommandBuffer::commit>("commit")
      .on<&CommandBuffer::wait_until_completed>("waitUntilCompleted")
      .on<&CommandBuffer::wait_until_scheduled>("waitUntilScheduled")
      .on<&CommandBuffer::status>("status")
      .on<&CommandBuffer::error>("error")
      .on<&CommandBuffer::add_completed_handler>("addCompletedHandler:")
      .on<&CommandBuffer::add_scheduled_handler>("addScheduledHandler:")
      .on<&CommandBuffer::encode_signal>("encodeSignalEvent:value:")
      .on<&CommandBuffer::encode_wait>("encodeWaitForEvent:value:")
      .on<&CommandBuffer::push_debug_group>("pushDebugGroup:")
      .on<&CommandBuffer::pop_debug_group>("popDebugGroup")
      .property<&CommandBuffer::gpu_start>("GPUStartTime")
      .property<&CommandBuffer::gpu_end>("GPUEndTime")
      .property<&CommandBuffer::gpu_start>("kernelStartTime")
      .property<&CommandBuffer::gpu_end>("kernelEndTime")
      .property<&CommandBuffer::device>("device")
      .property<&CommandBuffer::queue>("commandQueue")
      .property<&CommandBuffer::retained>("retainedReferences")
      .property<&CommandBuffer::error_options>("errorOptions")
      .property<&CommandBuffer::label>("label", "setLabel:");
  return true;
}();

}  // namespace

}  // namespace metal
}  // namespace soft
