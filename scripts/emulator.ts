/** QEMU and the C library with which programs for Linux on arm64 run on another processor. */
import { existsSync } from "node:fs";
import { join } from "node:path";

/** Where Debian and Ubuntu put arm64's libraries for cross compilers. */
export const ARM_LIBRARIES = "/usr/aarch64-linux-gnu";

export function armEmulator(): string | null {
  return Bun.which("qemu-aarch64-static") ?? Bun.which("qemu-aarch64");
}

/** Why arm64's programs cannot be run here; null if they can. */
export function noArm(): string | null {
  const there = armEmulator() !== null && existsSync(join(ARM_LIBRARIES, "lib/libc.so.6"));
  return there ? null : "apt install qemu-user-static libc6-arm64-cross";
}

/** What goes before a program for arm64 and its arguments; where noArm() is null. */
export function armCommand(): string[] {
  return [armEmulator()!, "-L", ARM_LIBRARIES];
}
