#include "helpers.h"
#include <pthread.h>
#include <signal.h>
#include <thread>

namespace soft {

// Never destroyed: its threads outlive static destructors.
Helpers& Helpers::instance() {
  static Helpers* const helpers = new Helpers;
  return *helpers;
}

void Helpers::offer(Job& job, uint32_t count) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (job_) return;
    while (threads_ < count) make_thread();
    job.wanted = count;
    job_ = &job;
  }
  offered_.notify_all();
}

void Helpers::withdraw(Job& job) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (job_ != &job) return;
  job.wanted = 0;
  left_.wait(lock, [&] { return job.inside == 0; });
  job_ = nullptr;
}

// Signals are for the program's own threads.
void Helpers::make_thread() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([this] { serve(); }).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  threads_++;
}

void Helpers::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    offered_.wait(lock, [&] { return job_ && job_->wanted > 0; });
    Job& job = *job_;
    job.wanted--;
    job.inside++;
    lock.unlock();
    job.body();
    lock.lock();
    if (--job.inside == 0) left_.notify_all();
  }
}

}  // namespace soft
