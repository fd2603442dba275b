// An MPI of two ranks in one process: what is sent to rank 1 comes back from it, the n-th message of a tag as the n-th
// that is received. With -DOPEN_MPI its handles are pointers to symbols, otherwise MPICH's integers, and it refuses any
// others. FAKE_FAIL names the call that fails; "hang": no message ever arrives; "alone": there is one rank.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef OPEN_MPI
typedef void* Handle;
char ompi_mpi_comm_world[8], ompi_mpi_byte[8], ompi_mpi_errors_return[8];
#define WORLD ((Handle)ompi_mpi_comm_world)
#define BYTE ((Handle)ompi_mpi_byte)
#define RETURN ((Handle)ompi_mpi_errors_return)
#define IGNORE ((void*)0)
#define VERSION "Open MPI v4.1.4, package: none"
#else
typedef int Handle;
#define WORLD 0x44000000
#define BYTE 0x4c00010d
#define RETURN 0x54000001
#define IGNORE ((void*)1)
#define VERSION "MPICH Version:\t4.0.2\nmore"
#endif

struct message {
  void* bytes;
  int count, tag, receives, done;
};
static struct message messages[4096];
static int posted = 0;

static int fails(const char* call) {
  const char* wanted = getenv("FAKE_FAIL");
  return wanted && strcmp(wanted, call) == 0;
}

int MPI_Get_library_version(char* text, int* length) {
  *length = sprintf(text, "%s", fails("version") ? "Other MPI 1.0" : VERSION);
  return 0;
}
int MPI_Error_string(int code, char* text, int* length) {
  *length = sprintf(text, "the fake error %d", code);
  return 0;
}
int MPI_Init_thread(int* argc, char*** argv, int wanted, int* given) {
  *given = wanted;
  return argc || argv || fails("init") ? 16 : 0;
}
int MPI_Comm_set_errhandler(Handle comm, Handle handler) { return comm == WORLD && handler == RETURN ? 0 : 5; }
int MPI_Comm_rank(Handle comm, int* rank) {
  *rank = 0;
  return comm == WORLD ? 0 : 5;
}
int MPI_Comm_size(Handle comm, int* size) {
  *size = fails("alone") ? 1 : 2;
  return comm == WORLD ? 0 : 5;
}

static int post(void* bytes, int count, Handle type, int peer, int tag, Handle comm, Handle* request, int receives) {
  if (type != BYTE || comm != WORLD || peer != 1 || posted == 4096) return 6;
  messages[posted] = (struct message){bytes, count, tag, receives, 0};
  *request = (Handle)(intptr_t)(0x100 + posted++);
  return 0;
}
#ifndef WITHOUT_ISEND
int MPI_Isend(const void* from, int count, Handle type, int to, int tag, Handle comm, Handle* request) {
  return fails("isend") ? 15 : post((void*)from, count, type, to, tag, comm, request, 0);
}
#endif
int MPI_Irecv(void* into, int count, Handle type, int from, int tag, Handle comm, Handle* request) {
  return post(into, count, type, from, tag, comm, request, 1);
}

int MPI_Test(Handle* request, int* done, void* status) {
  *done = 0;
  if (status != IGNORE || fails("test")) return 17;
  if (fails("hang")) return 0;
  struct message* own = &messages[(intptr_t)*request - 0x100];
  if (own->receives) {
    int before = 0;
    for (struct message* m = messages; m < own; m++) before += m->receives && m->tag == own->tag;
    for (struct message* m = messages; m < messages + posted && !own->done; m++)
      if (!m->receives && m->tag == own->tag && before-- == 0) {
        if (m->count != own->count) return 14;
        memcpy(own->bytes, m->bytes, m->count);
        own->done = 1;
      }
    *done = own->done;
  } else
    *done = 1;
  return 0;
}
int MPI_Abort(Handle comm, int code) {
  (void)comm;
  _Exit(code);
}
int MPI_Finalize(void) { return fails("finalize") ? 18 : 0; }
