"""From patches and metadata to token embeddings: spectral projection and coordinates.

Everything here is dense algebra on the token-major batch. Metadata that is unknown contributes exactly nothing: its
features are zero and its projections have no bias.
"""

import math

import torch
from torch import nn

from .configuration_a2mae import GEOGRAPHIC_BITS, A2MAEConfig
from .masking_a2mae import UNKNOWN_TIME
from .tokens_a2mae import gather_images, is_image_by_image

# Mean length of the Gregorian year, 365.2425 days.
MINUTES_PER_YEAR = 525_949.2
# Periods of the sine-cosine features, from the finest difference they have to tell apart to the whole range.
POSITION_PERIODS_METRES = (4.0, 40_000.0, 16)  # patches of 0.5 m pixels to the width of a large scene
SCALE_PERIODS_OCTAVES = (2.0, 32.0, 5)  # log2 of metres per patch
YEAR_PERIODS = (2.0, 64.0, 6)  # years since 2000
WAVELENGTH_PERIODS = (0.06, 4.0, 8)  # natural log of wavelength: red (665 nm) from red edge (705 nm) to 0.4–2.5 µm
WIDTH_PERIODS = (0.5, 8.0, 4)  # natural log of width in nanometres
IMAGE_PERIODS = (2.0, 64.0, 6)  # index of the image in its set
SEASON_HARMONICS = 4

POSITION_FEATURES = 2 * 2 * POSITION_PERIODS_METRES[2]
SPECTRAL_FEATURES = 2 * (WAVELENGTH_PERIODS[2] + WIDTH_PERIODS[2])
IMAGE_FEATURES = 2 * (SCALE_PERIODS_OCTAVES[2] + SEASON_HARMONICS + YEAR_PERIODS[2]) + SPECTRAL_FEATURES
IDENTITY_FEATURES = 2 * IMAGE_PERIODS[2]


def sine_cosine(values: torch.Tensor, periods: tuple[float, float, int]) -> torch.Tensor:
    """Return sine and cosine of values at geometrically spaced periods.

    Args:
        values: (…) float32, in the unit of the periods.
        periods: Shortest period, longest period, number of periods.

    Returns:
        (…, 2 × number of periods) float32.
    """
    shortest, longest, count = periods
    exponents = torch.arange(count, dtype=torch.float32, device=values.device) / (count - 1)
    frequencies = (2 * math.pi / shortest) * (shortest / longest) ** exponents
    # The cosine is a sine a quarter turn ahead: one pass over one tensor instead of three and a concatenation.
    phases = torch.arange(2, dtype=torch.float32, device=values.device).repeat_interleave(count) * (math.pi / 2)
    return torch.addcmul(phases, values[..., None], frequencies.repeat(2)).sin_()


def spectral_features(band_wavelengths: torch.Tensor, band_widths: torch.Tensor) -> torch.Tensor:
    """Describe bands by Fourier features of the logarithms of wavelength and width.

    Args:
        band_wavelengths: (B, T, C) nanometres, 0 where the band is absent.
        band_widths: (B, T, C) nanometres.

    Returns:
        (B, T, C, `SPECTRAL_FEATURES`) float32, zero where the band is absent.
    """
    present = band_wavelengths > 0
    log_wavelength = torch.where(present, band_wavelengths.float() / 1000, 1.0).log()
    log_width = torch.where(present & (band_widths > 0), band_widths.float(), 1.0).log()
    features = torch.cat(
        [sine_cosine(log_wavelength, WAVELENGTH_PERIODS), sine_cosine(log_width, WIDTH_PERIODS)], dim=-1
    )
    return features * present[..., None]


def image_features(
    band_wavelengths: torch.Tensor,
    band_widths: torch.Tensor,
    ground_resolutions: torch.Tensor,
    acquisition_times: torch.Tensor,
    patch_size: int,
) -> torch.Tensor:
    """Describe whole images: scale, season, absolute time, and the mean description of their bands.

    Args:
        band_wavelengths: (B, T, C) nanometres, 0 where the band is absent.
        band_widths: (B, T, C) nanometres.
        ground_resolutions: (B, T) metres per pixel, 0 where unknown.
        acquisition_times: (B, T) int64 minutes since 2000-01-01, the smallest int64 where unknown.
        patch_size: Pixels.

    Returns:
        (B, T, `IMAGE_FEATURES`) float32, zero where unknown.
    """
    scale_known = ground_resolutions > 0
    patch_metres = torch.where(scale_known, ground_resolutions.float() * patch_size, 1.0)
    scale = sine_cosine(patch_metres.log2(), SCALE_PERIODS_OCTAVES) * scale_known[..., None]

    time_known = acquisition_times != UNKNOWN_TIME
    years = torch.where(time_known, acquisition_times, 0).float() / MINUTES_PER_YEAR
    harmonics = torch.arange(1, SEASON_HARMONICS + 1, dtype=torch.float32, device=years.device)
    season = 2 * math.pi * (years - years.floor())[..., None] * harmonics
    time = torch.cat([season.sin(), season.cos(), sine_cosine(years, YEAR_PERIODS)], dim=-1) * time_known[..., None]

    num_bands = (band_wavelengths > 0).sum(-1, keepdim=True).clamp(min=1)
    spectrum = spectral_features(band_wavelengths, band_widths).sum(-2) / num_bands
    return torch.cat([scale, time, spectrum], dim=-1)


def geographic_bits(geographic_codes: torch.Tensor, level: int) -> torch.Tensor:
    """Unpack GeoSOT codes into ±1, most significant bit first.

    Args:
        geographic_codes: (B, 8) int64 codes of 32 bits, −1 where unknown.
        level: Leading bits of each code to read; the others give 0.

    Returns:
        (B, 256) float32 of −1, +1, and 0 where unknown or beyond the level.
    """
    shifts = torch.arange(31, -1, -1, device=geographic_codes.device)
    bits = (geographic_codes[..., None] >> shifts) & 1
    readable = (geographic_codes[..., None] >= 0) & (shifts > 31 - level)
    return ((2 * bits - 1) * readable).flatten(1).float()


class FanInLinear(nn.Linear):
    """A linear layer whose weights start with variance 1 / in_features, so that its output has the scale of its input.

    A class of its own, because for code outside the library transformers initialises only modules that hold parameters:
    what their parents would set is skipped without a word.
    """


class A2MAESpectralNetwork(nn.Module):
    """Mixing weights of a band from its wavelength and width: (B, T, C) nanometres → (B, T, C, K), 0 where absent."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.fc1 = FanInLinear(SPECTRAL_FEATURES, config.spectral_hidden_size)
        self.activation = nn.GELU()
        self.fc2 = FanInLinear(config.spectral_hidden_size, config.spectral_basis_size)

    def forward(self, band_wavelengths: torch.Tensor, band_widths: torch.Tensor) -> torch.Tensor:
        """Return the weights; see the class."""
        features = spectral_features(band_wavelengths, band_widths).to(self.fc1.weight.dtype)
        weights = self.fc2(self.activation(self.fc1(features)))
        return weights * (band_wavelengths > 0)[..., None]


class A2MAEPatchEmbedding(nn.Module):
    """Embed patches of any bands: mix them into virtual bands, then project linearly.

    Under `spectral_projection="identity"` the bands are taken as they come.
    """

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.mixes_bands = config.spectral_projection == "basis"
        num_virtual = config.spectral_basis_size if self.mixes_bands else config.num_channels
        if self.mixes_bands:
            self.spectral_network = A2MAESpectralNetwork(config)
        self.projection = FanInLinear(num_virtual * config.patch_size**2, config.hidden_size)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the (B, L, hidden_size) embeddings of a batch.

        Raises:
            ValueError: The bands do not fit the projection.
        """
        pixels = batch["pixel_values"].to(self.projection.weight.dtype)
        if not self.mixes_bands:
            if pixels.shape[2] != self.num_channels:
                raise ValueError(
                    f"pixel_values has {pixels.shape[2]} bands, this checkpoint takes {self.num_channels} as they are"
                    " (spectral_projection='identity'); select those bands in the processor."
                )
            return self.projection(pixels.flatten(2))
        wavelengths = batch["band_wavelengths"]
        weights = self.spectral_network(wavelengths, batch["band_widths"])
        # The mean over the bands that are there keeps the scale, however many they are.
        if "pixel_mask" in batch:
            virtual = gather_images(weights, batch["image_ids"]).transpose(2, 3) @ pixels
            num_present = batch["pixel_mask"].sum(dim=2, keepdim=True).clamp(min=1).to(pixels.dtype)
            return self.projection((virtual / num_present).flatten(2))
        weights = weights / (wavelengths > 0).sum(-1)[..., None, None].clamp(min=1)
        if mixing_kernels_pays(weights, batch["image_ids"]):
            return self.project_with_mixed_kernels(pixels, weights)
        virtual = gather_images(weights, batch["image_ids"]).transpose(2, 3) @ pixels
        return self.projection(virtual.flatten(2))

    def project_with_mixed_kernels(self, pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Embed (B, L, C, P·P) pixels whose tokens lie image by image, with one kernel per image.

        Mixing the virtual bands' kernels with the weights (B, T, C, K) gives each image a kernel for its own bands: the
        same sum in another order, with C instead of K bands per token.
        """
        num_bands, num_virtual = weights.shape[2:]
        width, area = self.projection.out_features, pixels.shape[-1]
        kernels = self.projection.weight.view(width, num_virtual, area).permute(1, 2, 0).reshape(num_virtual, -1)
        kernels = (weights.flatten(0, 1) @ kernels).unflatten(-1, (area, width)).flatten(1, 2)
        embedded = torch.baddbmm(self.projection.bias, pixels.reshape(len(kernels), -1, num_bands * area), kernels)
        return embedded.view(len(pixels), -1, width)


class A2MAEPatchPrediction(nn.Module):
    """Predict patches in the bands of their image: the mirror of `A2MAEPatchEmbedding`."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.reads_out_bands = config.spectral_projection == "basis"
        self.num_virtual = config.spectral_basis_size if self.reads_out_bands else config.num_channels
        if self.reads_out_bands:
            self.spectral_network = A2MAESpectralNetwork(config)
        self.projection = nn.Linear(config.decoder_hidden_size, self.num_virtual * config.patch_size**2)

    def forward(self, hidden_states: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return (B, M, C, P·P) values for the (B, M, width) states of the tokens of a batch."""
        if not self.reads_out_bands:
            return self.projection(hidden_states).unflatten(-1, (self.num_virtual, -1))
        weights = self.spectral_network(batch["band_wavelengths"], batch["band_widths"])
        if mixing_kernels_pays(weights, batch["image_ids"]):
            return self.predict_with_mixed_kernels(hidden_states, weights)
        virtual = self.projection(hidden_states).unflatten(-1, (self.num_virtual, -1))
        return gather_images(weights, batch["image_ids"]) @ virtual

    def predict_with_mixed_kernels(self, hidden_states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Predict tokens that lie image by image, with one kernel per image; see `A2MAEPatchEmbedding`."""
        of_images = weights.flatten(0, 1)
        kernels = (of_images @ self.projection.weight.view(self.num_virtual, -1)).view(
            len(of_images), -1, hidden_states.shape[-1]
        )
        biases = (of_images @ self.projection.bias.view(self.num_virtual, -1)).flatten(1)
        states = hidden_states.reshape(len(of_images), -1, hidden_states.shape[-1])
        predicted = torch.baddbmm(biases[:, None], states, kernels.transpose(1, 2))
        return predicted.view(*hidden_states.shape[:2], weights.shape[2], -1)


def mixing_kernels_pays(weights: torch.Tensor, image_ids: torch.Tensor) -> bool:
    """Say whether to mix the kernels of the virtual bands once per image, instead of the bands of every token.

    Both orders give the same sum. Per image of N tokens one costs C · (K + N) products, the other K · N; and tokens
    have to lie image by image.

    Args:
        weights: (B, T, C, K) mixing weights.
        image_ids: (B, L) int64.
    """
    num_images, num_bands, num_virtual = weights.shape[1:]
    per_image = image_ids.shape[1] // num_images
    return num_bands * (num_virtual + per_image) < num_virtual * per_image and is_image_by_image(image_ids, num_images)


class A2MAECoordinates(nn.Module):
    """Sum of learned projections of ground position, image description, place and, in the decoder, image identity."""

    def __init__(self, config: A2MAEConfig, width: int, tells_images_apart: bool = False) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.geographic_level = config.geographic_level
        self.position = nn.Linear(POSITION_FEATURES, width, bias=False)
        self.image = nn.Linear(IMAGE_FEATURES, width, bias=False)
        self.place = nn.Linear(GEOGRAPHIC_BITS, width, bias=False)
        self.identity = nn.Linear(IDENTITY_FEATURES, width, bias=False) if tells_images_apart else None

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the (B, L, width) coordinates of the tokens of a batch."""
        dtype = self.position.weight.dtype
        of_images = self.image(
            image_features(
                batch["band_wavelengths"],
                batch["band_widths"],
                batch["ground_resolutions"],
                batch["acquisition_times"],
                self.patch_size,
            ).to(dtype)
        )
        if "geographic_codes" in batch:
            # Scaled to length one: two hundred bits would otherwise drown the patch at the start of training.
            bits = geographic_bits(batch["geographic_codes"], self.geographic_level)
            bits = bits * (8 * self.geographic_level) ** -0.5
            of_images = of_images + self.place(bits.to(dtype))[:, None]
        if self.identity is not None:
            image_index = torch.arange(of_images.shape[1], dtype=torch.float32, device=of_images.device)
            of_images = of_images + self.identity(sine_cosine(image_index, IMAGE_PERIODS).to(dtype))
        coordinates = gather_images(of_images, batch["image_ids"])
        if "patch_positions" in batch:
            position = sine_cosine(batch["patch_positions"].float(), POSITION_PERIODS_METRES).flatten(2)
            coordinates = self.position(position.to(dtype)).add_(coordinates)
        return coordinates


class ReleasedCoordinates(nn.Module):
    """The fixed coordinates of the released network, for its checkpoints.

    The encoder adds `[place bits | P(p; r₁) | P(p; r₂) | …]` to every token of every image, the decoder `P(p; r)` of
    the token's own image, where `P(p; r)` is the sine-cosine of (r · column, r · row) and r the ground resolution in
    metres.
    """

    def __init__(self, config: A2MAEConfig, width: int, of_own_image: bool = False) -> None:
        super().__init__()
        self.width = width
        self.of_own_image = of_own_image
        self.num_images = config.released_num_images

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the (B, L, width) coordinates of the tokens of a batch.

        Raises:
            ValueError: The batch lacks the grid, or the number of images is not that of the checkpoint.
        """
        if "grid_positions" not in batch:
            raise ValueError(
                "grid_shapes is missing from the batch; coordinate_layout='released' needs the patch grid."
            )
        resolutions = batch["ground_resolutions"].float()
        row, column = batch["grid_positions"].float().unbind(-1)
        if self.of_own_image:
            resolution = gather_images(resolutions, batch["image_ids"])
            coordinates = self.sine_cosine_of_grid(row * resolution, column * resolution, self.width)
        else:
            if resolutions.shape[1] != self.num_images:
                raise ValueError(
                    f"The batch has {resolutions.shape[1]} images per set, but this checkpoint takes exactly"
                    f" {self.num_images} (coordinate_layout='released')."
                )
            row, column = row[:, :, None] * resolutions[:, None], column[:, :, None] * resolutions[:, None]
            positions = self.sine_cosine_of_grid(row, column, (self.width - GEOGRAPHIC_BITS) // self.num_images)
            codes = batch.get("geographic_codes", torch.full_like(batch["anchor_ids"], -1)[:, None].expand(-1, 8))
            bits = geographic_bits(codes, 32).clamp(min=0)
            coordinates = torch.cat([bits[:, None].expand(-1, row.shape[1], -1), positions.flatten(2)], dim=-1)
        return coordinates.to(batch["pixel_values"].dtype)

    @staticmethod
    def sine_cosine_of_grid(row: torch.Tensor, column: torch.Tensor, width: int) -> torch.Tensor:
        """Return `[sin(column), cos(column), sin(row), cos(row)]`, width / 4 frequencies 10000^(−4i/width) each."""
        exponents = torch.arange(width // 4, dtype=torch.float32, device=row.device) / (width // 4)
        frequencies = 10_000**-exponents
        x, y = column[..., None] * frequencies, row[..., None] * frequencies
        return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1)
