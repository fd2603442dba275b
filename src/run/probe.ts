import { errorLine } from "../core/errors.ts";
import { ABI_HASH } from "../device/abi.gen.ts";
import { Device, type DeviceName } from "../device/device.ts";
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

/** Opens every device and adds two numbers on it. */
export async function probe(): Promise<readonly Check[]> {
  const checks: Check[] = [];
  for (const name of Device.available()) {
    try {
      checks.push({ name: `device ${name}`, status: "ok", detail: tryDevice(name) });
    } catch (error) {
      const detail = errorLine(error).slice("rlv: error: ".length);
      checks.push({
        name: `device ${name}`,
        status: "fail",
        detail,
        remedy: REMEDY[name] ?? "run ./rlv to rebuild the library",
      });
    }
  }
  if (checks.some((c) => c.status === "ok")) {
    checks.unshift({ name: "native library", status: "ok", detail: `interface ${ABI_HASH}` });
  }
  return checks;
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
