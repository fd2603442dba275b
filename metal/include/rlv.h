// The whole interface between TypeScript and the native library. Everything crosses as 32-bit integers,
// doubles, handles and caller-owned byte ranges: no struct by value, no returned string, no callback. No
// function throws, prints or aborts. Functions returning a status give 0 for success and otherwise leave a
// description for rlv_error.
#pragma once
#include <stdint.h>
#include "ops.gen.h"

#if defined(__GNUC__)
#define RLV_API __attribute__((visibility("default")))
#else
#define RLV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Copies the hash of this interface (NUL-terminated) and returns its length; a stale library shows here.
RLV_API uint32_t rlv_abi_hash(char* out, uint32_t capacity);

// Opens a device: "cpu", "ref", "null", and "metal" or "soft" where the library was built with it; threads 0
// = as many as the process may use. 0 on failure.
RLV_API uint32_t rlv_open(const char* name, uint32_t threads);
// Waits for the device's work, frees all its buffers and ends its threads.
RLV_API void rlv_close(uint32_t device);
// JSON description: name, isa, threads. Returns the length needed.
RLV_API uint32_t rlv_info(uint32_t device, char* out, uint32_t capacity);

// A zeroed buffer of `units` times 16 bytes; 0 on failure. The label appears in errors.
RLV_API uint32_t rlv_buffer_new(uint32_t device, uint32_t units, const char* label);
// Frees a buffer; work already submitted is waited for. A stale handle is an error.
RLV_API uint32_t rlv_buffer_free(uint32_t device, uint32_t buffer);
// Makes a buffer all zero once the submitted work is done. Its memory goes back to the system where that
// gives zeros on the next use: what was never written costs nothing. A stale handle or a mapped file is an
// error.
RLV_API uint32_t rlv_buffer_clear(uint32_t device, uint32_t buffer);
// Address of a buffer's bytes, NULL on the null device, for a mapped or for a stale handle.
RLV_API void* rlv_buffer_ptr(uint32_t device, uint32_t buffer);

// Validates and queues a batch of records: each is a word (op id) | (words in all << 16), then the
// operation's struct. Returns a ticket, 0 on failure (nothing is queued). Operations take effect in order.
RLV_API uint32_t rlv_submit(uint32_t device, const uint32_t* words, uint32_t count);
// Waits up to `milliseconds` for a ticket: 0 done, 1 still running, 2 the stream failed.
RLV_API uint32_t rlv_wait(uint32_t device, uint32_t ticket, uint32_t milliseconds);
// Text of the first error since the last call, then clears it and revives the stream; the length, 0 if none.
RLV_API uint32_t rlv_error(uint32_t device, char* out, uint32_t capacity);

// out[0..9] = live bytes, live buffers, peak bytes, submitted operations, executed batches, barriers,
// FLOPs, bytes named by operations, scratch bytes of threads, resident peak of the process.
RLV_API uint32_t rlv_stats(uint32_t device, double* out, uint32_t capacity);
// Per operation id: calls, nanoseconds, FLOPs, bytes (4 doubles each). Switches measuring on or off.
RLV_API uint32_t rlv_profile(uint32_t device, double* out, uint32_t capacity, uint32_t enable);
// The machine's own limit on this device: what 0 float32 GFLOP/s, 1 bfloat16 GFLOP/s, 2 read GB/s; 3 the
// bytes that the read test keeps from its first run on (0: it gives them back).
RLV_API double rlv_measure(uint32_t device, uint32_t what, double seconds);

// Gradient of one forward operation on a ref device by the complex step. cotangents and gradients hold one
// rlv_ref per tensor of the operation: float32 cotangents of outputs (absent: zero), and where to write the
// float32 gradients of inputs (absent: not wanted), both in the element order of the tensor itself.
RLV_API uint32_t rlv_ref_vjp(uint32_t device, const uint32_t* record, uint32_t words,
                             const uint32_t* cotangents, const uint32_t* gradients);
// Makes the n-th next buffer allocation fail (0 = off): tests of the out-of-memory path.
RLV_API void rlv_fail_allocation(uint32_t n);

// Reads `bytes` of a file at `offset` (in units of 1 byte, as a double) into a buffer at `unit`.
RLV_API uint32_t rlv_read_file(uint32_t device, uint32_t buffer, uint32_t unit, int32_t fd, double offset,
                               double bytes);
// A buffer for operations that read alone: bytes [offset, offset + bytes) of a file, in the page cache, not
// copied; any offset will do. All its pages are there when this returns, so an error of the medium shows here
// and not as a signal later. 0, with no error left, where files cannot be mapped (the device, the file
// system, a file that ends early): rlv_read_file is for those, and says what is wrong with the file.
RLV_API uint32_t rlv_map_file(uint32_t device, int32_t fd, double offset, double bytes, const char* label);
// Forces a file's data to the medium (F_FULLFSYNC where it exists). 0 or errno.
RLV_API uint32_t rlv_fullsync(int32_t fd);

// Becomes the program words[0]: `arguments` strings, then `variables` of its environment, each ended by NUL.
// It has `cpu_seconds` of processor time, `memory` bytes of private data (0 = any) and its standard streams,
// writes no file, and ends with `parent`, the process that started this one. On Linux it has no socket,
// starts no process and signals no other; elsewhere the caller sees to that. Returns on failure alone: the
// length of the text in `error`.
RLV_API uint32_t rlv_exec_confined(const char* words, uint32_t arguments, uint32_t variables, uint32_t parent,
                                   uint32_t cpu_seconds, double memory, char* error, uint32_t capacity);

// Processes that train together (metal/dist). libmpi is loaded at run time: the first of `names`, each ended
// by NUL, `bytes` in all, that is an Open MPI or has MPICH's binary interface. Nothing is initialised. All
// calls below come from one thread; a status other than 0 leaves a description for rlv_mpi_error.
RLV_API uint32_t rlv_mpi_load(const char* names, uint32_t bytes);
// Lines: the name that was loaded, "Open MPI" or "MPICH", its version. Returns the length, 0 if none is
// loaded.
RLV_API uint32_t rlv_mpi_info(char* out, uint32_t capacity);
// MPI_Init_thread; out[0] = rank, out[1] = ranks.
RLV_API uint32_t rlv_mpi_start(uint32_t* out, uint32_t capacity);
// Begins to give `bytes` of this rank to all; sizes[r] = bytes of rank r. They are copied.
RLV_API uint32_t rlv_mpi_gather(const void* mine, uint32_t bytes, const uint32_t* sizes, uint32_t ranks);
// After a gather: copies `bytes` from `offset` of what all gave, rank after rank.
RLV_API uint32_t rlv_mpi_take(void* out, uint32_t offset, uint32_t bytes);
// Begins to replace values (float32 or bfloat16) by their sums over the ranks, which are added in their
// order, in float32, and rounded once; the same bits on every rank. The memory stays until rlv_mpi_wait says
// 0 or 2.
RLV_API uint32_t rlv_mpi_sum(void* values, uint32_t bytes, uint32_t dtype);
// Drives the exchange for up to `milliseconds`: 0 done, 1 still running, 2 failed.
RLV_API uint32_t rlv_mpi_wait(uint32_t milliseconds);
RLV_API uint32_t rlv_mpi_error(char* out, uint32_t capacity);
// Ends all processes of the job, this one too.
RLV_API void rlv_mpi_abort(uint32_t code);
// MPI_Finalize, when no exchange is under way.
RLV_API uint32_t rlv_mpi_stop(void);

#ifdef __cplusplus
}
#endif
