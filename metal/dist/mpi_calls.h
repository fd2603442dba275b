// The part of MPI that rlv uses, declared here: handles are pointers to symbols in Open MPI and integers in
// MPICH and what shares its binary interface (Intel MPI, MVAPICH), so no header of either is included.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

namespace rlv {

// A loaded libmpi. A failed call leaves its text in `error`; nothing throws but for want of memory. For one
// thread.
class Mpi {
 public:
  virtual ~Mpi() = default;
  // MPI_Init_thread; false with `error`.
  virtual bool start() = 0;
  // Both take bytes that stay where they are until `poll` has said that all is done.
  virtual bool send(const void* from, uint32_t bytes, uint32_t to, int tag) = 0;
  virtual bool receive(void* into, uint32_t bytes, uint32_t from, int tag) = 0;
  // Drives what is under way: how many messages have arrived or left since the last call; false if one
  // failed.
  virtual bool poll(uint32_t& completed) = 0;
  virtual uint32_t pending() const = 0;
  virtual void abort(uint32_t code) = 0;
  virtual bool finish() = 0;

  const char* kind = "";  // "Open MPI" or "MPICH"
  std::string version, error;
  uint32_t rank = 0, ranks = 0;
};

// Finds the calls in a library that dlopen has loaded; nullptr, with `error` filled, if it is no MPI known
// here.
std::unique_ptr<Mpi> find_mpi(void* library, std::string& error);

}  // namespace rlv
