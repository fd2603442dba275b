/**
 * Apple's metal-cpp headers (Apache-2.0), in the edition that MLX ships in its wheel for macOS.
 *
 *   bun scripts/metal-cpp.ts     fetches them if need be and prints their folder
 */
import { join } from "node:path";
import { fail } from "./objects.ts";
import { MissingTool, unpackedWheel, type Wheel } from "./tool-cache.ts";

export const MLX_METAL: Wheel = {
  project: "mlx-metal",
  version: "0.32.4",
  platform: "macosx_14_0_arm64",
  sha256: "8019b2db622599267d66cc168b2f0dbf5af929790a6c3b3913e00eabc42a7947",
  megabytes: 45,
};

/** Throws MissingTool. */
export function findMetalCpp(): string {
  return unpackedWheel(MLX_METAL, `metal-cpp-mlx-${MLX_METAL.version}`, "mlx/include/metal_cpp");
}

/** The folder to include from; ends the program with a remedy if it cannot be had. */
export function metalCpp(): string {
  try {
    return findMetalCpp();
  } catch (error) {
    if (error instanceof MissingTool) fail(error.message);
    throw error;
  }
}

export function metalCppLicence(): string {
  return join(metalCpp(), "LICENSE.txt");
}

/** A library that was linked with Apple's SDK through the same headers: a reference for tests. Throws MissingTool. */
export function findSdkLinkedLibrary(): string {
  return unpackedWheel(MLX_METAL, `libmlx-${MLX_METAL.version}.dylib`, "mlx/lib/libmlx.dylib");
}

if (import.meta.main) process.stdout.write(`${metalCpp()}\n`);
