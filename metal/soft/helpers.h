// Operating system threads that help the caller of execute(); made on demand, kept for good.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace soft {

class Helpers {
 public:
  struct Job {
    std::function<void()> body;
    uint32_t wanted = 0, inside = 0;
  };
  static Helpers& instance();
  // Lets up to `count` threads run job.body once each; does nothing while another job is on offer.
  void offer(Job& job, uint32_t count);
  // No thread begins the job any more; waits for those inside.
  void withdraw(Job& job);

 private:
  void make_thread();
  void serve();

  std::mutex mutex_;
  std::condition_variable offered_, left_;
  Job* job_ = nullptr;
  uint32_t threads_ = 0;
};

}  // namespace soft
