// Becomes another program that may compute, read files, and speak to its standard streams, but reach no
// network, start no process, write no file and signal no other process.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>
#include "../core/guard.h"
#include "../core/text.h"
#include "rlv.h"

#if defined(__linux__)
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <cstddef>
#endif

#if defined(__linux__)
// Of calls younger than some systems' headers; the number is the same on every processor.
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef __NR_openat2
#define __NR_openat2 437
#endif
#ifndef __NR_pidfd_getfd
#define __NR_pidfd_getfd 438
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif
#ifndef __NR_quotactl_fd
#define __NR_quotactl_fd 443
#endif
#ifndef __NR_memfd_secret
#define __NR_memfd_secret 447
#endif
#endif

namespace {

// errno of the first step that failed, and its name.
struct Failure {
  const char* step = nullptr;
  int code = 0;
};

Failure failed(const char* step) { return {step, errno}; }

bool limit(int resource, rlim_t most) {
  rlimit now{};
  if (getrlimit(decltype(RLIMIT_CPU)(resource), &now) != 0) return false;
  const rlim_t value = most < now.rlim_max ? most : now.rlim_max;
  const rlimit next{value, value};
  return setrlimit(decltype(RLIMIT_CPU)(resource), &next) == 0;
}

#if defined(__linux__)
#if defined(__x86_64__)
constexpr uint32_t kArch = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArch = AUDIT_ARCH_AARCH64;
#else
constexpr uint32_t kArch = 0;
#endif

constexpr uint32_t kNumber = offsetof(seccomp_data, nr);
// Low word of argument i: both processors are little-endian.
constexpr uint32_t argument(uint32_t i) { return offsetof(seccomp_data, args) + 8 * i; }
constexpr uint32_t refuse(int code) { return SECCOMP_RET_ERRNO | uint32_t(code); }

class Filter {
 public:
  Filter() {
    load(offsetof(seccomp_data, arch));
    otherwise(BPF_JEQ, kArch, SECCOMP_RET_KILL_PROCESS);
    load(kNumber);
  }
  void load(uint32_t offset) { emit(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset); }
  void ret(uint32_t action) { emit(BPF_RET | BPF_K, 0, 0, action); }
  // Returns `action` if the comparison of the loaded word with `value` holds, or if it does not.
  void when(uint16_t test, uint32_t value, uint32_t action) {
    emit(BPF_JMP | BPF_K | test, 0, 1, value);
    ret(action);
  }
  void otherwise(uint16_t test, uint32_t value, uint32_t action) {
    emit(BPF_JMP | BPF_K | test, 1, 0, value);
    ret(action);
  }
  void deny(std::initializer_list<long> calls, int code) {
    for (long call : calls) when(BPF_JEQ, uint32_t(call), refuse(code));
  }
  // For one call: `rules` see its argument loaded; what they let through is allowed.
  template <typename Rules>
  void inspect(long call, uint32_t which, Rules rules) {
    const size_t jump = code_.size();
    emit(BPF_JMP | BPF_K | BPF_JEQ, 0, 0, uint32_t(call));
    load(argument(which));
    rules();
    ret(SECCOMP_RET_ALLOW);
    code_[jump].jf = uint8_t(code_.size() - jump - 1);
  }
  bool install() {
    const sock_fprog program{static_cast<unsigned short>(code_.size()), code_.data()};
    // Every thread, although exec ends all but this one.
    return syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
  }

 private:
  void emit(uint32_t code, uint8_t jt, uint8_t jf, uint32_t k) {
    code_.push_back({static_cast<uint16_t>(code), jt, jf, k});
  }
  std::vector<sock_filter> code_;
};

bool install_filter() {
  Filter f;
  // Calls that came later do not exist; nor do, far above, the x32 numbers of those that do.
  f.when(BPF_JGE, 450, refuse(ENOSYS));
  // No network: no socket at all; a pair of connected ones stays within the process.
  f.deny({__NR_socket, __NR_connect, __NR_bind, __NR_listen, __NR_accept, __NR_accept4}, EACCES);
  // These could do what is refused elsewhere; programs have other ways when they do not exist.
  f.deny({__NR_clone3, __NR_openat2, __NR_io_uring_setup, __NR_io_uring_enter, __NR_io_uring_register},
         ENOSYS);
  // No change of any file, also of none in memory.
  f.deny({__NR_unlinkat,     __NR_renameat2,    __NR_mkdirat,      __NR_linkat,       __NR_symlinkat,
          __NR_mknodat,      __NR_truncate,     __NR_ftruncate,    __NR_fallocate,    __NR_fchmod,
          __NR_fchmodat,     __NR_fchown,       __NR_fchownat,     __NR_utimensat,    __NR_setxattr,
          __NR_lsetxattr,    __NR_fsetxattr,    __NR_removexattr,  __NR_lremovexattr, __NR_fremovexattr,
          __NR_memfd_create, __NR_memfd_secret, __NR_fanotify_init},
         EROFS);
#if defined(__NR_renameat)
  f.deny({__NR_renameat}, EROFS);
#endif
#if defined(__x86_64__)
  f.deny({__NR_unlink, __NR_rename, __NR_mkdir, __NR_rmdir, __NR_link, __NR_symlink, __NR_mknod, __NR_creat,
          __NR_chmod, __NR_chown, __NR_lchown, __NR_utime, __NR_utimes, __NR_futimesat},
         EROFS);
  f.deny({__NR_fork, __NR_vfork}, EAGAIN);
  f.deny({__NR_ioperm, __NR_iopl, __NR_modify_ldt}, EPERM);
#endif
  // Nothing that reaches other processes or the system.
  f.deny({__NR_ptrace,
          __NR_process_vm_readv,
          __NR_process_vm_writev,
          __NR_pidfd_open,
          __NR_pidfd_getfd,
          __NR_pidfd_send_signal,
          __NR_tkill,
          __NR_rt_sigqueueinfo,
          __NR_rt_tgsigqueueinfo,
          __NR_bpf,
          __NR_perf_event_open,
          __NR_userfaultfd,
          __NR_keyctl,
          __NR_add_key,
          __NR_request_key,
          __NR_unshare,
          __NR_setns,
          __NR_mount,
          __NR_umount2,
          __NR_pivot_root,
          __NR_chroot,
          __NR_fsopen,
          __NR_fsmount,
          __NR_move_mount,
          __NR_open_tree,
          __NR_reboot,
          __NR_kexec_load,
          __NR_init_module,
          __NR_finit_module,
          __NR_delete_module,
          __NR_swapon,
          __NR_swapoff,
          __NR_acct,
          __NR_quotactl,
          __NR_settimeofday,
          __NR_clock_settime,
          __NR_clock_adjtime,
          __NR_adjtimex,
          __NR_sethostname,
          __NR_setdomainname,
          __NR_syslog,
          __NR_shmget,
          __NR_msgget,
          __NR_semget,
          __NR_mq_open,
          __NR_setsid,
          __NR_setpgid,
          __NR_execveat,
          __NR_setpriority,
          __NR_sched_setscheduler,
          __NR_sched_setattr,
          __NR_sched_setparam,
          __NR_name_to_handle_at,
          __NR_open_by_handle_at},
         EPERM);
  constexpr uint32_t kWriting = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY);
  const auto reads = [&f] { f.when(BPF_JSET, kWriting, refuse(EROFS)); };
#if defined(__x86_64__)
  f.inspect(__NR_open, 1, reads);
#endif
  f.inspect(__NR_openat, 2, reads);
  // Threads, no processes.
  f.inspect(__NR_clone, 0, [&f] { f.otherwise(BPF_JSET, CLONE_THREAD, refuse(EAGAIN)); });
  const auto own = uint32_t(getpid());
  const auto self = [&f, own] { f.otherwise(BPF_JEQ, own, refuse(EPERM)); };
  f.inspect(__NR_kill, 0, self);
  f.inspect(__NR_tgkill, 0, self);
  f.inspect(__NR_prlimit64, 0, [&f, own] {
    f.when(BPF_JEQ, 0, SECCOMP_RET_ALLOW);
    f.otherwise(BPF_JEQ, own, refuse(EPERM));
  });
  f.inspect(__NR_prctl, 0, [&f] { f.when(BPF_JEQ, PR_SET_PDEATHSIG, refuse(EPERM)); });
  f.ret(SECCOMP_RET_ALLOW);
  return f.install();
}

Failure confine_system(uint32_t parent) {
  if (kArch == 0) return {"this processor", ENOSYS};
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return failed("PR_SET_PDEATHSIG");
  if (uint32_t(getppid()) != parent) return {"the parent is gone", ESRCH};
  // A root without the rights of one; where it may not drop them it has not got them all.
  if (geteuid() == 0) prctl(PR_SET_SECUREBITS, 0x2f, 0, 0, 0);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failed("PR_SET_NO_NEW_PRIVS");
  return {};
}
#endif

void close_on_exec() {
#if defined(__linux__)
  if (syscall(__NR_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */) == 0) return;
#endif
  for (int fd = 3; fd < 4096; fd++) fcntl(fd, F_SETFD, FD_CLOEXEC);
}

Failure become(const char* words, uint32_t arguments, uint32_t variables, uint32_t parent,
               uint32_t cpu_seconds, double memory) {
  std::vector<char*> argv, env;
  for (uint32_t i = 0; i < arguments + variables; i++, words += std::strlen(words) + 1)
    (i < arguments ? argv : env).push_back(const_cast<char*>(words));
  argv.push_back(nullptr);
  env.push_back(nullptr);
  (void)parent;
  if (setsid() < 0 && getpgrp() != getpid()) return failed("setsid");
#if defined(__linux__)
  if (const Failure f = confine_system(parent); f.step) return f;
#endif
  if (!limit(RLIMIT_CPU, cpu_seconds)) return failed("RLIMIT_CPU");
  if (!limit(RLIMIT_CORE, 0)) return failed("RLIMIT_CORE");
  if (!limit(RLIMIT_FSIZE, 0)) return failed("RLIMIT_FSIZE");
  if (!limit(RLIMIT_NOFILE, 256)) return failed("RLIMIT_NOFILE");
  if (memory > 0 && !limit(RLIMIT_DATA, rlim_t(memory))) return failed("RLIMIT_DATA");
  close_on_exec();
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int s = 1; s < 32; s++)
    if (s != SIGKILL && s != SIGSTOP) signal(s, SIG_DFL);
#if defined(__linux__)
  if (!install_filter()) return failed("seccomp");
#endif
  execve(argv[0], argv.data(), env.data());
  return failed("execve");
}

}  // namespace

uint32_t rlv_exec_confined(const char* words, uint32_t arguments, uint32_t variables, uint32_t parent,
                           uint32_t cpu_seconds, double memory, char* error, uint32_t capacity) {
  uint32_t length = 0;
  const auto tell = [&](std::string_view text) { length = rlv::copy_text(text, error, capacity); };
  rlv::guarded("starting a confined program", false, tell, [&] {
    const Failure f = become(words, arguments, variables, parent, cpu_seconds, memory);
    tell(std::string(f.step) + ": " + std::strerror(f.code));
    return false;
  });
  return length;
}
