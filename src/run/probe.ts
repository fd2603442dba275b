import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { deviceChoice } from "../core/env.ts";
import { messageLine } from "../core/errors.ts";
import { ABI_HASH } from "../device/abi.gen.ts";
import { Device, type DeviceName } from "../device/device.ts";
import { lib, libraryPath } from "../device/lib.ts";
import { Dtype } from "../ops/define.ts";
import { add } from "../ops/elementwise.ts";
import "../ops/index.ts";

interface Check {
  readonly name: string;
  readonly status: "ok" | "warn" | "fail";
  readonly detail: string;
  readonly remedy?: string;
}

const REMEDY: Readonly<Partial<Record<DeviceName, string>>> = {
  metal: "use --device cpu",
  soft: "run scripts/build-native --soft",
};

const message = (error: unknown) => messageLine(error);

/** Loads the native library, opens every device and adds two numbers on it. */
export async function probe(): Promise<readonly Check[]> {
  let wanted: DeviceName;
  let library: Check;
  try {
    const choice = deviceChoice("auto");
    wanted = choice !== "auto" ? choice : Device.metalIsHere ? "metal" : "cpu";
    library = nativeLibrary();
  } catch (error) {
    return [{ name: "native library", status: "fail", detail: message(error) }];
  }
  const available = Device.available();
  const missing: Check[] = available.includes(wanted)
    ? []
    : [
        {
          name: `device ${wanted}`,
          status: "fail",
          detail: "RLV_DEVICE names it, and it is not here",
          remedy: REMEDY[wanted] ?? "unset RLV_DEVICE",
        },
      ];
  return [library, ...missing, ...available.map((name) => checkDevice(name, name === wanted))];
}

function nativeLibrary(): Check {
  lib();
  const path = libraryPath("native");
  const digest = createHash("sha256").update(readFileSync(path)).digest("hex");
  return {
    name: "native library",
    status: "ok",
    detail: `${path}, sha256 ${digest}, interface ${ABI_HASH}`,
  };
}

/** A device that nobody asks for may be broken. */
function checkDevice(device: DeviceName, wanted: boolean): Check {
  const name = `device ${device}`;
  try {
    const detail = tryDevice(device);
    return { name, status: "ok", detail: wanted ? `${detail} (the one that is used)` : detail };
  } catch (error) {
    const remedy = REMEDY[device] ?? "run ./rlv to rebuild the library, or download rlv again";
    return { name, status: wanted ? "fail" : "warn", detail: message(error), remedy };
  }
}

function tryDevice(name: DeviceName): string {
  const device = Device.open(name);
  try {
    const buffer = device.buffer(3 * 64, "probe");
    if (device.hasMemory) {
      new Float32Array(buffer.view(0, 16)).fill(1.5);
      new Float32Array(buffer.view(64, 16)).fill(2);
    }
    const y = buffer.range(128, 16);
    device.emit(add, { y, a: buffer.range(0, 16), b: buffer.range(64, 16), n: 4, dt: Dtype.f32 });
    device.finish();
    const wrong = device.hasMemory && !new Float32Array(buffer.view(128, 16)).every((v) => v === 3.5);
    buffer.free();
    if (wrong) throw new Error("1.5 + 2 did not give 3.5");
    return device.describe();
  } finally {
    device.close();
  }
}
