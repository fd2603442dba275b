#include "mpi_calls.h"

#include <dlfcn.h>
#include <cstring>
#include <vector>

namespace rlv {

namespace {

// What the constants of mpi.h are in either interface.
struct OpenMpi {
  using Handle = void*;
  static constexpr const char* kName = "Open MPI";
  static void* ignore() { return nullptr; }
  static Handle byte(void* library) { return dlsym(library, "ompi_mpi_byte"); }
  static Handle world(void* library) { return dlsym(library, "ompi_mpi_comm_world"); }
  static Handle errors_return(void* library) { return dlsym(library, "ompi_mpi_errors_return"); }
  static constexpr Handle kNone = nullptr;
};

struct Mpich {
  using Handle = int;
  static constexpr const char* kName = "MPICH";
  static void* ignore() { return reinterpret_cast<void*>(1); }
  static Handle byte(void*) { return 0x4c00010d; }
  static Handle world(void*) { return 0x44000000; }
  static Handle errors_return(void*) { return 0x54000001; }
  static constexpr Handle kNone = 0;
};

constexpr int kFunneled = 1;       // MPI_THREAD_FUNNELED
constexpr int kTextBytes = 16384;  // more than either's longest text

using Version = int (*)(char*, int*);

std::string version_of(Version call) {
  std::string text(kTextBytes, '\0');
  int length = 0;
  if (call(text.data(), &length) != 0 || length < 0 || length >= kTextBytes) return "";
  text.resize(std::strlen(text.c_str()));
  return text.substr(0, text.find('\n'));
}

template <class Abi>
class Calls : public Mpi {
  using Handle = typename Abi::Handle;

 public:
  // nullptr: every call is there; otherwise the name of the first that is missing.
  const char* find(void* library) {
    const char* missing = nullptr;
    const auto load = [&](auto& call, const char* name) {
      call = reinterpret_cast<std::decay_t<decltype(call)>>(dlsym(library, name));
      if (!call && !missing) missing = name;
    };
    load(init_, "MPI_Init_thread");
    load(rank_, "MPI_Comm_rank");
    load(size_, "MPI_Comm_size");
    load(set_errors_, "MPI_Comm_set_errhandler");
    load(error_string_, "MPI_Error_string");
    load(send_, "MPI_Isend");
    load(receive_, "MPI_Irecv");
    load(test_, "MPI_Test");
    load(abort_, "MPI_Abort");
    load(finalize_, "MPI_Finalize");
    world_ = Abi::world(library);
    byte_ = Abi::byte(library);
    errors_return_ = Abi::errors_return(library);
    if (!missing && (!world_ || !byte_ || !errors_return_)) missing = "its constants";
    return missing;
  }

  bool start() override {
    int provided = 0, own = 0, all = 0;
    if (!fine(init_(nullptr, nullptr, kFunneled, &provided), "MPI_Init_thread")) return false;
    if (!fine(set_errors_(world_, errors_return_), "MPI_Comm_set_errhandler")) return false;
    if (!fine(rank_(world_, &own), "MPI_Comm_rank") || !fine(size_(world_, &all), "MPI_Comm_size"))
      return false;
    if (own < 0 || all < 1 || own >= all) {
      error = "MPI gives rank " + std::to_string(own) + " of " + std::to_string(all);
      return false;
    }
    rank = uint32_t(own);
    ranks = uint32_t(all);
    return true;
  }

  bool send(const void* from, uint32_t bytes, uint32_t to, int tag) override {
    requests_.push_back(Abi::kNone);
    return posted(send_(from, int(bytes), byte_, int(to), tag, world_, &requests_.back()), "MPI_Isend");
  }

  bool receive(void* into, uint32_t bytes, uint32_t from, int tag) override {
    requests_.push_back(Abi::kNone);
    return posted(receive_(into, int(bytes), byte_, int(from), tag, world_, &requests_.back()), "MPI_Irecv");
  }

  bool poll(uint32_t& completed) override {
    completed = 0;
    size_t kept = 0;
    for (size_t i = 0; i < requests_.size(); i++) {
      int done = 0;
      if (!fine(test_(&requests_[i], &done, Abi::ignore()), "MPI_Test")) return false;
      if (done)
        completed++;
      else
        requests_[kept++] = requests_[i];
    }
    requests_.resize(kept);
    return true;
  }

  uint32_t pending() const override { return uint32_t(requests_.size()); }
  void abort(uint32_t code) override { abort_(world_, int(code)); }
  bool finish() override { return fine(finalize_(), "MPI_Finalize"); }

 private:
  // The place of the last request was taken before: none that is under way gets lost.
  bool posted(int code, const char* call) {
    if (code != 0) requests_.pop_back();
    return fine(code, call);
  }

  bool fine(int code, const char* call) {
    if (code == 0) return true;
    std::string text(kTextBytes, '\0');
    int length = 0;
    const bool known = error_string_(code, text.data(), &length) == 0;
    error = std::string(call) + ": " + (known ? text.c_str() : ("code " + std::to_string(code)).c_str());
    return false;
  }

  int (*init_)(int*, char***, int, int*) = nullptr;
  int (*rank_)(Handle, int*) = nullptr;
  int (*size_)(Handle, int*) = nullptr;
  int (*set_errors_)(Handle, Handle) = nullptr;
  int (*error_string_)(int, char*, int*) = nullptr;
  int (*send_)(const void*, int, Handle, int, int, Handle, Handle*) = nullptr;
  int (*receive_)(void*, int, Handle, int, int, Handle, Handle*) = nullptr;
  int (*test_)(Handle*, int*, void*) = nullptr;
  int (*abort_)(Handle, int) = nullptr;
  int (*finalize_)() = nullptr;
  Handle world_{}, byte_{}, errors_return_{};
  std::vector<Handle> requests_;
};

template <class Abi>
std::unique_ptr<Mpi> make(void* library, const std::string& version, std::string& error) {
  auto calls = std::make_unique<Calls<Abi>>();
  if (const char* missing = calls->find(library)) {
    error = std::string(missing) + " is missing";
    return nullptr;
  }
  calls->kind = Abi::kName;
  calls->version = version;
  return calls;
}

}  // namespace

std::unique_ptr<Mpi> find_mpi(void* library, std::string& error) {
  // Both may be asked before MPI_Init.
  const auto call = reinterpret_cast<Version>(dlsym(library, "MPI_Get_library_version"));
  if (!call) {
    error = "MPI_Get_library_version is missing";
    return nullptr;
  }
  const std::string version = version_of(call);
  if (dlsym(library, "ompi_mpi_comm_world")) return make<OpenMpi>(library, version, error);
  for (const char* name : {"MPICH", "Intel(R) MPI", "MVAPICH"})
    if (version.find(name) != std::string::npos) return make<Mpich>(library, version, error);
  error = "neither Open MPI nor MPICH: " + version;
  return nullptr;
}

}  // namespace rlv
